//! What the disk itself takes to make a write durable, measured between the rotations that depend on it.

use std::fs::File;
use std::io::Write as _;
use std::time::Instant;

use super::Sample;

/// Four KiB, as a database writes at the least.
const PAGE: [u8; 4096] = [0; 4096];

/// A file in the directory where the sites are, too.
pub struct Disk {
    file: File,
    /// Milliseconds per durable write.
    pub syncs: Sample,
}

impl Disk {
    pub fn new() -> Self {
        Self {
            file: tempfile::tempfile().unwrap(),
            syncs: Sample::default(),
        }
    }

    /// Appends a page and waits until it is durable.
    pub fn sync(&mut self) {
        self.file.write_all(&PAGE).unwrap();
        let begun = Instant::now();
        self.file.sync_data().unwrap();
        self.syncs.push(begun.elapsed().as_secs_f64() * 1e3);
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}
