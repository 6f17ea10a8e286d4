//! What another process uses, as Linux tells it.

use std::time::Duration;

/// Processor time of all living threads of `pid`, in the kernel's and in user mode. A thread that ends takes its share with it, so this is for
/// stretches in which none does.
pub fn processor_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanoseconds = tasks.filter_map(|task| {
        // A thread may end between being listed and being read.
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Resident memory, MiB.
#[derive(Clone, Copy)]
pub struct Memory {
    /// All of it.
    pub resident: f64,
    /// The part that no file backs: heap and stacks.
    pub anonymous: f64,
    /// The most that was resident since the start, or since [`forget_peak`].
    pub peak: f64,
}

/// Lets the peak of a process of ours begin anew.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

pub fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mebibytes = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kibibytes: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes / 1024.0
    };
    Memory {
        resident: mebibytes("VmRSS:"),
        anonymous: mebibytes("RssAnon:"),
        peak: mebibytes("VmHWM:"),
    }
}
