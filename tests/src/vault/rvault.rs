//! `rvault` (RustyVault) as a child process: an independent server of Vault's API with file storage, initialised and unsealed by HTTP.
//!
//! What must always hold: it listens on loopback, on a port nobody chose; it dies with the value, and with the test process however that one ends; whoever lacks
//! it is told how to install it. Its quirks: no `sys/health`, no policies, no wrapping, and expired secret_ids live on until they are tidied away.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::Operator;
use crate::world::free_port;

const INSTALL: &str = "cargo install rusty_vault --version 0.2.1 --locked --bin rvault --root \"${XDG_CACHE_HOME:-$HOME/.cache}/keyturn/tools\"";
/// The shell waits on a pipe whose other end only we hold, and kills the group when it closes.
const WATCHDOG: &str = r#"
exec 3<&0
(read -r line <&3; kill -KILL 0) &
exec 3<&-
exec "$@" </dev/null
"#;
const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(25);
const PORTS: u32 = 5;

/// A running, unsealed server. Dropping it kills it.
pub struct Rvault {
    folder: tempfile::TempDir,
    process: Option<(Child, ChildStdin)>,
    tls: bool,
    port: u16,
    unseal_key: String,
    root: String,
}

impl Rvault {
    /// Starts one over an empty folder.
    pub async fn start() -> Self {
        Self::launch(tempfile::tempdir().unwrap(), false).await
    }

    /// The same behind TLS, with `server.crt` and `server.key` of `folder`.
    pub async fn start_tls(folder: tempfile::TempDir) -> Self {
        Self::launch(folder, true).await
    }

    async fn launch(folder: tempfile::TempDir, tls: bool) -> Self {
        let mut server = Self {
            folder,
            process: None,
            tls,
            port: 0,
            unseal_key: String::new(),
            root: String::new(),
        };
        server.spawn().await;
        let made = server
            .say(
                "PUT",
                "sys/init",
                json!({ "secret_shares": 1, "secret_threshold": 1 }),
            )
            .await;
        server.unseal_key = made["keys"][0].as_str().unwrap().to_owned();
        server.root = made["root_token"].as_str().unwrap().to_owned();
        server.unseal().await;
        server
    }

    pub fn address(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The folder it works in.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Somebody with the root token.
    pub fn operator(&self) -> Operator {
        let ca = self.tls.then(|| self.folder.path().join("ca.crt"));
        Operator::new(&self.address(), &self.root, ca)
    }

    pub async fn seal(&self) {
        self.say("PUT", "sys/seal", Value::Null).await;
    }

    pub async fn unseal(&self) {
        let body = json!({ "key": self.unseal_key });
        let status = self.say("PUT", "sys/unseal", body).await;
        assert_eq!(status["sealed"], false, "{status}");
    }

    /// SIGKILL. The address stays free for [`Rvault::restart`].
    pub fn kill(&mut self) {
        if let Some((mut child, lifeline)) = self.process.take() {
            let _already_gone = kill_process_group(Pid::from_child(&child), Signal::KILL);
            drop(lifeline);
            child.wait().unwrap();
        }
    }

    /// Starts again over the same files and the same port, and unseals.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn().await;
        self.unseal().await;
    }

    async fn spawn(&mut self) {
        for _ in 0..PORTS {
            let port = if self.port == 0 {
                free_port()
            } else {
                self.port
            };
            if self.try_spawn(port).await {
                self.port = port;
                return;
            }
        }
        panic!("rvault found {PORTS} free ports taken before it could bind them");
    }

    /// False when the port was taken in the meantime.
    async fn try_spawn(&mut self, port: u16) -> bool {
        let folder = self.folder.path();
        for name in ["data", "work"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let tls = if self.tls {
            format!(
                "tls_disable = false\n  tls_cert_file = \"{0}/server.crt\"\n  tls_key_file = \"{0}/server.key\"\n  tls_disable_client_certs = true",
                folder.display()
            )
        } else {
            "tls_disable = true".to_owned()
        };
        let config = format!(
            "storage \"file\" {{\n  path = \"{0}/data\"\n}}\nlistener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  {tls}\n}}\nlog_level = \"error\"\n\
             work_dir = \"{0}/work\"\ndaemon = false\n",
            folder.display()
        );
        let path = folder.join("rvault.hcl");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(folder.join("rvault.log")).unwrap();
        let mut child = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "rvault-watchdog"])
            .arg(program())
            .args(["server", "--config"])
            .arg(&path)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let lifeline = child.stdin.take().unwrap();
        let deadline = Instant::now() + READY;
        self.port = port;
        loop {
            let ended = child.try_wait().unwrap().is_some();
            let said = std::fs::read_to_string(folder.join("rvault.log")).unwrap_or_default();
            if ended && said.contains("Address already in use") {
                self.port = 0;
                return false;
            }
            assert!(!ended, "rvault ended by itself: {said}");
            let probe = self.client().get(format!("{}/v1/sys/init", self.address()));
            if probe
                .send()
                .await
                .is_ok_and(|answer| answer.status() == 200)
            {
                self.process = Some((child, lifeline));
                return true;
            }
            assert!(Instant::now() < deadline, "rvault is not ready: {said}");
            tokio::time::sleep(POLL).await;
        }
    }

    fn client(&self) -> reqwest::Client {
        let ca = self.tls.then(|| self.folder.path().join("ca.crt"));
        super::operator::client(ca.as_deref())
    }

    async fn say(&self, method: &str, path: &str, body: Value) -> Value {
        let method = method.parse().unwrap();
        let url = format!("{}/v1/{path}", self.address());
        let mut request = self
            .client()
            .request(method, url)
            .header("x-vault-token", &self.root);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        let text = answer.text().await.unwrap();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }
}

impl Drop for Rvault {
    fn drop(&mut self) {
        if let Some((child, _)) = &self.process {
            let _already_gone = kill_process_group(Pid::from_child(child), Signal::KILL);
        }
        if let Some((mut child, lifeline)) = self.process.take() {
            drop(lifeline);
            let _status = child.wait();
        }
    }
}

/// In the tools folder, or on the path.
fn program() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let tools = cache.map(|cache| cache.join("keyturn/tools/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    tools
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("rvault"))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("rvault is not installed; install it with: {INSTALL}"))
}
