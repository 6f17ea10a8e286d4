//! Mosquitto as a child process, exactly as `docs/mosquitto` says: its files with other ports, paths and another user, certificates by its script.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::net::TcpStream;

use super::repository;
use crate::leash::Leashed;
use crate::world::{eventually, free_port};

const INSTALL: &str = "apt-get install mosquitto mosquitto-clients";
/// Debian keeps the broker where only root's path looks.
const PATHS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// Somebody's certificate and who signed the other side's.
#[derive(Clone)]
pub struct Certificate {
    /// The CA that signs the broker's.
    pub ca: PathBuf,
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// A running broker. Dropping it kills it.
pub struct Broker {
    folder: tempfile::TempDir,
    process: Option<Leashed>,
    /// Where devices connect.
    pub port: u16,
    /// Where relays connect.
    pub service_port: u16,
}

impl Broker {
    /// With a CA and a certificate of its own.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for words in ["ca", "broker 127.0.0.1 localhost", "service"] {
            certificates(folder.path(), words);
        }
        std::fs::create_dir(folder.path().join("kept")).unwrap();
        std::fs::copy(repository("docs/mosquitto/acl"), folder.path().join("acl")).unwrap();
        // Mosquitto takes no port 0.
        let mut broker = Self {
            folder,
            process: None,
            port: free_port(),
            service_port: free_port(),
        };
        broker.configure();
        broker.spawn().await;
        broker
    }

    /// The shipped configuration, with what a test has to replace. Every replacement must find what it replaces.
    fn configure(&self) {
        let mut text =
            std::fs::read_to_string(repository("docs/mosquitto/mosquitto.conf")).unwrap();
        let folder = self.folder.path().to_str().unwrap();
        let user = rustix::process::geteuid().as_raw();
        for (from, to) in [
            ("listener 8883", format!("listener {} 127.0.0.1", self.port)),
            (
                "listener 8884",
                format!("listener {} 127.0.0.1", self.service_port),
            ),
            ("/etc/mosquitto/keyturn", folder.to_owned()),
            ("/var/lib/mosquitto/", format!("{folder}/kept/")),
            // Only root can become somebody else; started by anybody else, Mosquitto does not look at this line.
            (
                "user mosquitto",
                (if user == 0 {
                    "user root"
                } else {
                    "user mosquitto"
                })
                .to_owned(),
            ),
        ] {
            assert!(text.contains(from), "the shipped file has no {from}");
            text = text.replace(from, &to);
        }
        std::fs::write(self.folder.path().join("mosquitto.conf"), text).unwrap();
    }

    /// SIGKILL: what it has not saved is lost.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await;
        }
    }

    /// Starts it again over the same files and the same ports.
    pub async fn restart(&mut self) {
        self.kill().await;
        self.spawn().await;
    }

    async fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let config = self.folder.path().join("mosquitto.conf");
        let config = ["-c", config.to_str().unwrap()];
        let mut process = Leashed::spawn(program("mosquitto"), config, log);
        let ports = [self.port, self.service_port];
        eventually("mosquitto listens", async || {
            assert!(!process.has_ended(), "mosquitto ended: {}", self.log());
            for port in ports {
                TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
            }
            Some(())
        })
        .await;
        self.process = Some(process);
    }

    /// The certificate of a device; made when it is first asked for.
    pub fn device(&self, id: &str) -> Certificate {
        if !self.folder.path().join(format!("{id}.crt")).exists() {
            certificates(self.folder.path(), &format!("device {id}"));
        }
        self.certificate(id)
    }

    /// The relay's.
    pub fn service(&self) -> Certificate {
        self.certificate("service")
    }

    /// The relay's, or any other that the script has made in this broker's folder.
    fn certificate(&self, name: &str) -> Certificate {
        let file = |name: String| self.folder.path().join(name);
        Certificate {
            ca: file("ca.crt".to_owned()),
            certificate: file(format!("{name}.crt")),
            key: file(format!("{name}.key")),
        }
    }

    /// A device's certificate with the right name, signed by a CA that this broker does not know.
    pub fn of_another_ca(&self, id: &str) -> Certificate {
        let other = self.folder.path().join("elsewhere");
        if !other.exists() {
            std::fs::create_dir(&other).unwrap();
            certificates(&other, "ca");
        }
        if !other.join(format!("{id}.crt")).exists() {
            certificates(&other, &format!("device {id}"));
        }
        Certificate {
            ca: self.folder.path().join("ca.crt"),
            certificate: other.join(format!("{id}.crt")),
            key: other.join(format!("{id}.key")),
        }
    }

    /// Takes a device's certificate back, as the page says, and starts the broker with the list.
    pub async fn revoke(&mut self, id: &str) {
        certificates(self.folder.path(), &format!("revoke {id}"));
        let path = self.folder.path().join("mosquitto.conf");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("\n#crlfile "),
            "the shipped file has no crlfile"
        );
        std::fs::write(&path, text.replace("\n#crlfile ", "\ncrlfile ")).unwrap();
        self.restart().await;
    }

    /// Starts it with other access rules: without the line `rule` of the shipped ones.
    pub async fn restart_without(&mut self, rule: &str) {
        let shipped = std::fs::read_to_string(repository("docs/mosquitto/acl")).unwrap();
        assert!(shipped.contains(rule), "the shipped rules have no {rule}");
        let path = self.folder.path().join("acl");
        std::fs::write(path, shipped.replace(rule, "")).unwrap();
        self.restart().await;
    }

    /// Starts it with one more listener, for those who come with a name and a password and no certificate; its port.
    pub async fn restart_with_password(&mut self, name: &str, password: &str) -> u16 {
        let passwords = self.folder.path().join("passwords");
        let output = Command::new(program("mosquitto_passwd"))
            .args(["-c", "-b"])
            .arg(&passwords)
            .args([name, password])
            .output()
            .unwrap();
        assert!(output.status.success(), "mosquitto_passwd: {output:?}");
        let (port, folder) = (free_port(), self.folder.path().display());
        let more = format!(
            "\nlistener {port} 127.0.0.1\ncertfile {folder}/broker.crt\nkeyfile {folder}/broker.key\ntls_version tlsv1.2\npassword_file {folder}/passwords\n"
        );
        let path = self.folder.path().join("mosquitto.conf");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + &more).unwrap();
        self.restart().await;
        port
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("mosquitto.log")
    }

    /// Where its files and the certificates are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the broker's log:\n{}", self.log());
        }
    }
}

/// Where this program of Mosquitto's lies.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PATHS.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; install it with: {INSTALL}"))
}

fn certificates(folder: &Path, words: &str) {
    let output = Command::new(repository("docs/mosquitto/certificates.sh"))
        .args(words.split(' '))
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "certificates.sh {words}: {}; it needs: apt-get install openssl",
        String::from_utf8_lossy(&output.stderr)
    );
}
