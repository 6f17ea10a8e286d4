//! Where the emulator is installed: below the root of the Google Cloud SDK whose `gcloud` is on the path.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LAUNCHER: &str = "platform/cloud-firestore-emulator/cloud_firestore_emulator";
const INSTALL_EMULATOR: &str = "the Firestore emulator is not installed; install it with: gcloud components install cloud-firestore-emulator \
    (where gcloud came from Google's apt repository: apt-get install google-cloud-cli-firestore-emulator)";
const INSTALL_GCLOUD: &str = "gcloud is not installed; install it as https://cloud.google.com/sdk/docs/install says, then: gcloud components install \
    cloud-firestore-emulator (from Google's apt repository: apt-get install google-cloud-cli google-cloud-cli-firestore-emulator)";
const INSTALL_JAVA: &str = "Java is not installed, which the Firestore emulator runs on; install it with: apt-get install default-jre-headless";

/// The emulator's launcher script; panics with the line that installs what is missing.
pub(super) fn launcher() -> PathBuf {
    if on_path("java").is_none() {
        panic!("{INSTALL_JAVA}");
    }
    let Some(gcloud) = on_path("gcloud") else {
        panic!("{INSTALL_GCLOUD}");
    };
    // The link on the path leads to ROOT/bin/gcloud in most installations; asking gcloud itself takes a second of Python, and finds the others (snap).
    beside(&gcloud)
        .or_else(|| said_by(&gcloud))
        .unwrap_or_else(|| panic!("{INSTALL_EMULATOR}"))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn beside(gcloud: &Path) -> Option<PathBuf> {
    let real = gcloud.canonicalize().ok()?;
    below(real.parent()?.parent()?)
}

fn said_by(gcloud: &Path) -> Option<PathBuf> {
    let output = Command::new(gcloud)
        .args(["info", "--format=value(installation.sdk_root)"])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    below(Path::new(String::from_utf8(output.stdout).ok()?.trim()))
}

fn below(root: &Path) -> Option<PathBuf> {
    let launcher = root.join(LAUNCHER);
    launcher.is_file().then_some(launcher)
}
