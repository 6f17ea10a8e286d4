//! `docs/device-firmware/device.py` as a child process: the very file that the firmware author's page shows.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;

use super::broker::Certificate;
use super::{Client, Mqtt, repository};
use crate::leash::Leashed;

const INSTALL: &str = "tools=\"${XDG_CACHE_HOME:-$HOME/.cache}/keyturn/tools\"; python3 -m venv \"$tools/device\" && \"$tools/device/bin/pip\" install -r docs/device-firmware/requirements.txt";

/// A device: its certificate, its keys, its state file.
pub struct Device {
    pub id: String,
    pub port: u16,
    pub certificate: Certificate,
    /// Where a login is tried.
    pub login: String,
    folder: tempfile::TempDir,
    keys: bool,
}

/// What a device holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub role_id: String,
    pub secret_id: String,
}

impl Device {
    pub fn new(id: &str, port: u16, certificate: Certificate, login: String) -> Self {
        Self {
            id: id.to_owned(),
            port,
            certificate,
            login,
            folder: tempfile::tempdir().unwrap(),
            keys: false,
        }
    }

    /// Makes its keys as the page says; the options for `keyturn device allow`.
    pub fn make_keys(&mut self) -> Vec<String> {
        self.keys = true;
        let folder = self.folder.path().to_str().unwrap();
        let output = std::process::Command::new(python())
            .arg(program())
            .args(["--make-keys", folder])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Turns it on.
    pub fn start(&self, version: Mqtt, more: &[&str]) -> PythonDevice {
        self.launch(None, version, more)
    }

    /// Turns it on with a clock that is off by so many seconds.
    pub fn start_with_clock(&self, off: i64, version: Mqtt, more: &[&str]) -> PythonDevice {
        let wrap = format!(
            "import runpy, sys, time; real = time.time; time.time = lambda: real() + {off}; runpy.run_path(sys.argv[0], run_name='__main__')"
        );
        self.launch(Some(wrap), version, more)
    }

    fn launch(&self, wrap: Option<String>, version: Mqtt, more: &[&str]) -> PythonDevice {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let mut words = Vec::new();
        if let Some(code) = wrap {
            // With -c, sys.argv[0] is "-c"; the rest is the program and its arguments.
            words.extend([
                "-c".to_owned(),
                format!("import sys; del sys.argv[0]; {code}"),
            ]);
        }
        words.push(path(&program()));
        let Certificate {
            ca,
            certificate,
            key,
        } = &self.certificate;
        for (option, value) in [
            ("--id", self.id.clone()),
            ("--broker", "127.0.0.1".to_owned()),
            ("--port", self.port.to_string()),
            ("--mqtt", version.as_str().to_owned()),
            ("--ca", path(ca)),
            ("--certificate", path(certificate)),
            ("--key", path(key)),
            ("--login", self.login.clone()),
            ("--state", path(&self.state_path())),
            // Longer than any answer takes; tests that lose messages say something shorter.
            ("--patience", "50".to_owned()),
        ] {
            words.extend([option.to_owned(), value]);
        }
        if self.keys {
            for name in ["identity", "sealing"] {
                let file = self.folder.path().join(format!("{name}.key"));
                words.extend([format!("--{name}-key"), path(&file)]);
            }
        }
        words.extend(more.iter().map(|&word| word.to_owned()));
        let errors = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("errors"))
            .unwrap();
        PythonDevice {
            process: Leashed::spawn(python(), words, errors),
            errors: self.folder.path().join("errors"),
            said: Vec::new(),
        }
    }

    /// What it holds that works, as far as it knows.
    pub fn credential(&self) -> Option<Credential> {
        let state = self.state();
        let text = |name: &str| state[name].as_str().map(str::to_owned);
        Some(Credential {
            role_id: text("role_id")?,
            secret_id: text("secret_id")?,
        })
    }

    /// Its state file.
    pub fn state(&self) -> Value {
        let text = std::fs::read_to_string(self.state_path()).unwrap_or_else(|_| "{}".to_owned());
        serde_json::from_str(&text).unwrap()
    }

    fn state_path(&self) -> PathBuf {
        self.folder.path().join("state.json")
    }

    /// Mosquitto's client in its place.
    pub fn client(&self, version: Mqtt) -> Client {
        Client {
            port: self.port,
            who: self.certificate.clone(),
            version,
        }
    }
}

/// A device that runs.
pub struct PythonDevice {
    process: Leashed,
    errors: PathBuf,
    /// Everything it has said so far.
    pub said: Vec<Value>,
}

impl PythonDevice {
    /// The next event of that name; what comes before is passed over.
    pub async fn event(&mut self, name: &str) -> Value {
        while let Some(line) = self.process.line().await {
            let event: Value = serde_json::from_str(&line).unwrap();
            self.said.push(event.clone());
            if event["event"] == name {
                return event;
            }
        }
        panic!(
            "it ended without {name}: {:?}\n{}",
            self.said,
            self.errors()
        )
    }

    /// Waits until it has ended by itself, and well; everything it has said.
    pub async fn done(mut self) -> Vec<Value> {
        while let Some(line) = self.process.line().await {
            self.said.push(serde_json::from_str(&line).unwrap());
        }
        let status = self.process.ended().await;
        assert!(
            status.success(),
            "{status}: {:?}\n{}",
            self.said,
            self.errors()
        );
        self.said
    }

    /// Takes the power away.
    pub async fn kill(mut self) {
        self.process.kill().await;
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

/// The published program.
pub fn program() -> PathBuf {
    repository("docs/device-firmware/device.py")
}

/// A Python with what `requirements.txt` names.
pub fn python() -> PathBuf {
    static FOUND: LazyLock<PathBuf> = LazyLock::new(find_python);
    FOUND.clone()
}

fn find_python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    // An interpreter without the packages is there as well when their installation has failed.
    let is_whole = |python: &PathBuf| {
        let output = std::process::Command::new(python)
            .args(["-c", "import paho.mqtt.client, cryptography"])
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    cache
        .map(|cache| cache.join("keyturn/tools/device/bin/python"))
        .filter(is_whole)
        .unwrap_or_else(|| {
            panic!("the device's Python and its packages are not installed; install them with: {INSTALL}")
        })
}
