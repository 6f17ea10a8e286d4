//! What the benchmarks share: numbers, targets, what a process uses, marks of a relay that runs as another process.
//!
//! What must always hold: two things are compared only when they ran side by side in one run; a program that measures exits with 1 when a
//! target is missed, and measures only when `cargo bench` asks for it.
#![allow(clippy::print_stdout)]

mod disk;
mod marks;
mod process;

pub use disk::Disk;
pub use marks::{Marks, Stamped};
pub use process::{Memory, forget_peak, memory, processor_time};

use std::process::ExitCode;

/// Whether this is `cargo bench`. `cargo test --all-targets` runs the same programs without `--bench`; then they have nothing to do.
pub fn asked() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}

/// Nanoseconds of the clock that all processes of this machine share.
pub fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Measured values of one kind.
#[derive(Default, Clone)]
pub struct Sample(Vec<f64>);

impl Sample {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest value that `percent` of all values do not exceed (nearest rank).
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    /// Each value divided by the other sample's at the same place: the two were measured side by side.
    pub fn ratio(&self, other: &Self) -> Self {
        assert_eq!(self.len(), other.len());
        let pairs = self.0.iter().zip(&other.0);
        pairs.map(|(mine, theirs)| mine / theirs).collect()
    }

    pub fn max(&self) -> f64 {
        self.percentile(100.0)
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The targets of one program, printed as they are judged.
pub struct Targets {
    met: bool,
}

impl Default for Targets {
    fn default() -> Self {
        println!(
            "\n{:<58} {:>9}   {:>12}",
            "targets (architecture.md)", "found", "wanted"
        );
        Self { met: true }
    }
}

impl Targets {
    pub fn at_least(&mut self, name: &str, found: f64, wanted: f64) {
        self.judge(name, found, "≥", wanted, found >= wanted);
    }

    pub fn at_most(&mut self, name: &str, found: f64, wanted: f64) {
        self.judge(name, found, "≤", wanted, found <= wanted);
    }

    fn judge(&mut self, name: &str, found: f64, sign: &str, wanted: f64, met: bool) {
        self.met &= met;
        let verdict = if met { "met" } else { "MISSED" };
        println!("{name:<58} {found:>9.3}   {sign} {wanted:>10.3}   {verdict}");
    }

    pub fn finish(self) -> ExitCode {
        if self.met {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
