//! Where to look: logs, pages, the wire, programs, memory, files.

use super::*;

/// Everything that this process, which is the admins and the issuer, logs.
#[derive(Clone, Default)]
pub(super) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(super) fn everything() -> Self {
        let captured = Self::default();
        let writer = captured.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        captured
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The program with every variable set that makes libraries talk.
pub(super) fn talkative(dir: &Path) -> String {
    let path = dir.join("talkative");
    let script = format!(
        "#!/bin/sh\nexport RUST_LOG=trace RUST_BACKTRACE=full GOOGLE_CLOUD_RUST_LOGGING=true\nexec '{PROGRAM}' \"$@\"\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Between the admins and the relay: its websocket listener and its own HTTP listener.
pub(super) struct Taps {
    relay: Tap,
    web: Tap,
}

impl Taps {
    /// From now on whoever connects to the relay is heard.
    pub(super) async fn before(relay: &mut Relay) -> Self {
        let taps = Self {
            relay: Tap::before(relay.url.trim_start_matches("ws://")).await,
            web: Tap::before(relay.web.trim_start_matches("http://")).await,
        };
        relay.url = format!("ws://{}", taps.relay.address());
        relay.web = format!("http://{}", taps.web.address());
        taps
    }

    /// Asks for everything there is, and for what there is not.
    pub(super) async fn every_route(&self) {
        let client = reqwest::Client::new();
        let web = format!("http://{}", self.web.address());
        for path in [
            "healthz",
            "readyz",
            "metrics",
            "kr/v1/challenge",
            "nothing",
            "kr/v1/",
        ] {
            for method in [reqwest::Method::GET, reqwest::Method::POST] {
                let request = client.request(method, format!("{web}/{path}"));
                request.body("{}").send().await.unwrap();
            }
        }
        let relay = format!("http://{}", self.relay.address());
        for path in ["", "metrics", "nothing"] {
            for accept in ["application/nostr+json", "text/html"] {
                let request = client.get(format!("{relay}/{path}"));
                request.header("accept", accept).send().await.unwrap();
            }
        }
    }

    pub(super) fn places(&self) -> [Place; 3] {
        [
            Place::new(
                "http",
                self.web.bytes(),
                &[
                    "\"alive\"",
                    "\"ready\":true",
                    "# TYPE",
                    "\"challenge\"",
                    "not_found",
                    "method_not_allowed",
                ],
            ),
            Place::new("wire, masked", self.relay.bytes(), &["supported_nips"]),
            Place::new(
                "wire",
                self.relay.payloads(),
                &[
                    "\"EVENT\"",
                    "\"kind\":445",
                    "\"kind\":1059",
                    "\"kind\":30443",
                ],
            ),
        ]
    }
}

/// What the operator's commands show.
pub(super) fn operators_programs(world: &World) -> Vec<Place> {
    let config = world.layout.config();
    let mut places = Vec::new();
    for command in [
        &["client", "show", CLIENT][..],
        &["client", "list"],
        &["admin", "list"],
        &["group", "list"],
    ] {
        for json in [&[][..], &["--json"]] {
            let output = Command::new(PROGRAM)
                .args(command)
                .args(["--config"])
                .arg(&config)
                .args(json)
                .output()
                .unwrap();
            let known = match command[0] {
                "client" => CLIENT,
                "admin" => "npub1",
                _ => GROUP,
            };
            places.push(shown(&format!("{command:?} {json:?}"), &output, known));
        }
    }
    places
}

pub(super) fn shown(name: &str, output: &Output, known: &str) -> Place {
    assert!(output.status.success(), "{name}: {output:?}");
    assert!(
        contains(&output.stdout, known.as_bytes()),
        "{name}: {output:?}"
    );
    Place::new(name, [&output.stdout[..], &output.stderr].concat(), &[])
}

/// What `keyturn-admin status --json` shows, with alice's home.
pub(super) async fn admins_program(world: &mut World, relay: &Relay, given: &Given) -> Place {
    let dir = world.home("alice");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let config = Config {
        service_urls: vec![relay.web.clone()],
        services: vec![world.service()],
        settle_secs: SETTLE.as_secs(),
        ..Config::new(RelayUrl::parse(&relay.url).unwrap())
    };
    Home::create(&dir, &config, Some(world.keys("alice"))).unwrap();
    let proof = world.dir.path().join("proof");
    let request = world.dir.path().join("proof.request");
    let child = Command::new(ADMIN)
        .env("KEYTURN_ADMIN_LOG", "trace")
        .args(["--json", "--home"])
        .arg(&dir)
        .args(["status", CLIENT, "--proof-file"])
        .arg(&proof)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Read from the beginning: a pipe holds less than it says.
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let asked: ProofRequest = eventually("the program asks for a proof", async || {
        let text = std::fs::read(&request).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    })
    .await;
    let issuer = given.by(world.issuer.signer());
    let answer = issuer.prove(&asked).await.unwrap();
    std::fs::write(&proof, answer.expose()).unwrap();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .unwrap()
        .unwrap();
    assert!(contains(&output.stderr, b"TRACE"), "it logs everything");
    shown("keyturn-admin status", &output, "current_version")
}

/// What the process tells about itself; and that a crash of it would leave no memory behind.
pub(super) fn process(relay: &Relay) -> Vec<Place> {
    let read = |name: &str| std::fs::read(format!("/proc/{}/{name}", relay.pid()));
    let limits = String::from_utf8(read("limits").unwrap()).unwrap();
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"))
        .unwrap();
    let core: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(core[..2], ["0", "0"], "no core file, and no way to get one");

    let mut places = vec![Place::new("cmdline", read("cmdline").unwrap(), &["serve"])];
    match read("environ") {
        Ok(environ) => places.push(Place::new("environ", environ, &["RUST_LOG=trace"])),
        // The process is not dumpable: then not even its own user may look.
        Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
    }
    places
}

/// Every file, as it is.
pub(super) fn files(when: &str, root: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(
                std::fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let known: &[&str] = match name.as_str() {
            "data/keyturn.db" => &[CLIENT],
            "keyturn.toml" => &["[relay]"],
            "relay.log" => &["keyturn takes requests"],
            _ => &[],
        };
        places.push(Place::new(
            format!("{when}{name}"),
            std::fs::read(&path).unwrap(),
            known,
        ));
    }
    for expected in ["data/keyturn.db", "data/member.db", "data.mdb", "relay.log"] {
        assert!(
            places
                .iter()
                .any(|place| place.name.ends_with(expected) && !place.bytes.is_empty()),
            "{when}{expected} is searched"
        );
    }
    places
}
