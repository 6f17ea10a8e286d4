//! How the benchmarks count time.

use std::time::{Duration, Instant};

/// Processor time that this thread has used, so that a busy machine does not count against it; the wall clock where Linux's `/proc` is missing.
pub fn used(since: Instant) -> Duration {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .map_or_else(|| since.elapsed(), Duration::from_nanos)
}

/// Calls per second of this thread's processor time, over at least `slice` of it.
pub async fn rate(slice: Duration, batch: u32, mut work: impl AsyncFnMut()) -> f64 {
    let start = Instant::now();
    let (begun, mut done) = (used(start), 0u64);
    loop {
        for _ in 0..batch {
            work().await;
        }
        done += u64::from(batch);
        let spent = used(start) - begun;
        if spent >= slice {
            return done as f64 / spent.as_secs_f64();
        }
    }
}

/// Of an odd number the one in the middle.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
