//! `keyturn quickstart`: a whole rotation on this machine. Arguments.

use std::path::PathBuf;

use clap::Args;

/// `quickstart`.
#[derive(Debug, Args)]
pub struct Quickstart {
    /// End after the rotation instead of serving on; the exit code is 0 only if everything held
    #[arg(long)]
    pub exit: bool,
    /// One JSON summary line on standard output
    #[arg(long)]
    pub json: bool,
    /// Keep the data here; without it a temporary directory is used and removed
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The relay's port on loopback; without it a free one
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub port: u16,
}
