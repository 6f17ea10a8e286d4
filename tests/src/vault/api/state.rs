//! What the server holds, and who may do what with it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fault::Fault;
use super::policy::Policy;
use super::{Ask, ROOT, Reply, denied, refuse};

/// One request, as far as tests ask about it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub namespace: String,
    pub wrap_ttl: u64,
}

/// Where capabilities stand in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As Vault has it.
    Both,
    /// As the documentation shows it.
    Top,
    /// As other `sys` paths have it.
    Data,
}

/// A role of an AppRole mount.
#[derive(Clone)]
pub(super) struct Role {
    pub(super) role_id: String,
    pub(super) settings: Value,
    pub(super) secret_ids: HashMap<String, SecretId>,
}

#[derive(Clone)]
pub(super) struct SecretId {
    pub(super) secret_id: String,
    pub(super) ends: Option<Instant>,
    pub(super) ttl: u64,
    pub(super) uses: u64,
    pub(super) metadata: Value,
    pub(super) blocks: Vec<String>,
}

impl SecretId {
    pub(super) fn alive(&self, now: Instant) -> bool {
        self.ends.is_none_or(|ends| now < ends)
    }
}

#[derive(Clone)]
pub(super) struct Token {
    pub(super) accessor: String,
    pub(super) namespace: String,
    pub(super) policies: Vec<String>,
    pub(super) renewable: bool,
    pub(super) ttl: Duration,
    pub(super) ends: Option<Instant>,
    /// Renewing never gets it beyond this.
    pub(super) last: Option<Instant>,
}

impl Token {
    pub(super) fn left(&self, now: Instant) -> u64 {
        self.ends.map_or(0, |ends| {
            let left = ends.saturating_duration_since(now);
            // Rounded up: 0 would mean that it never ends.
            left.as_millis().div_ceil(1000) as u64
        })
    }
}

/// An answer that waits for whoever brings its token.
pub(super) struct Wrapped {
    pub(super) ends: Instant,
    pub(super) path: String,
    pub(super) content: Value,
}

/// The whole server.
pub(super) struct Vault {
    pub(super) sealed: bool,
    pub(super) active: Option<String>,
    pub(super) names_wrapped: bool,
    pub(super) shape: Shape,
    pub(super) faults: Vec<Fault>,
    /// What the clock shows, once it is set by hand.
    pub(super) clock: Option<Instant>,
    pub(super) seen: Vec<Seen>,
    pub(super) present: usize,
    pub(super) most_at_once: usize,
    pub(super) tokens: HashMap<String, Token>,
    pub(super) policies: HashMap<String, Policy>,
    /// By namespace and mount.
    pub(super) mounts: HashMap<(String, String), HashMap<String, Role>>,
    pub(super) wrapped: HashMap<String, Wrapped>,
    made: u64,
}

impl Default for Vault {
    fn default() -> Self {
        let root = Token {
            accessor: "root-accessor".to_owned(),
            namespace: String::new(),
            policies: vec!["root".to_owned()],
            renewable: false,
            ttl: Duration::ZERO,
            ends: None,
            last: None,
        };
        Self {
            sealed: false,
            active: None,
            names_wrapped: true,
            shape: Shape::Both,
            faults: Vec::new(),
            clock: None,
            seen: Vec::new(),
            present: 0,
            most_at_once: 0,
            tokens: HashMap::from([(ROOT.to_owned(), root)]),
            policies: HashMap::new(),
            mounts: HashMap::new(),
            wrapped: HashMap::new(),
            made: 0,
        }
    }
}

impl Vault {
    /// What every lifetime here is judged by.
    pub(super) fn now(&self) -> Instant {
        self.clock.unwrap_or_else(Instant::now)
    }

    /// Something unique in the shape of a UUID.
    pub(super) fn unique(&mut self) -> String {
        self.made += 1;
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let random = u64::from_be_bytes(random);
        format!(
            "{:08x}-{:04x}-4000-8000-{:012x}",
            random >> 32,
            (random >> 16) & 0xffff,
            self.made
        )
    }

    pub(super) fn fault_for(&mut self, path: &str) -> Option<Fault> {
        let fault = self.faults.iter_mut().find(|fault| fault.matches(path))?;
        fault.times -= 1;
        Some(fault.clone())
    }

    pub(super) fn handle(&mut self, ask: &Ask<'_>) -> Reply {
        // Of the root namespace alone, as the documentation lists them.
        if ["sys/health", "sys/seal-status"].contains(&ask.path) && !ask.namespace.is_empty() {
            return Err(refuse(404, "unsupported path"));
        }
        if ask.path == "sys/seal-status" {
            return Ok(json!({ "type": "shamir", "initialized": true, "sealed": self.sealed }));
        }
        if ask.path == "sys/health" {
            return match (self.sealed, &self.active) {
                (true, _) => Err(refuse(503, "Vault is sealed")),
                (false, Some(_)) => Err(refuse(429, "standby")),
                (false, None) => {
                    Ok(json!({ "initialized": true, "sealed": false, "standby": false }))
                }
            };
        }
        if self.sealed {
            return Err(refuse(503, "Vault is sealed"));
        }
        if ask.method == "POST" && ask.path.starts_with("auth/") && ask.path.ends_with("/login") {
            return self.log_in(ask);
        }
        if ask.path == "sys/wrapping/lookup" {
            return self.wrapping(ask.body["token"].as_str().unwrap_or_default());
        }
        if ask.path == "sys/wrapping/unwrap" {
            return self.unwrap(ask.token);
        }
        self.authorise(ask)?;
        match ask.path {
            path if path.starts_with("auth/token/") => self.token(ask),
            path if path.starts_with("auth/") => self.approle(ask),
            _ => self.sys(ask),
        }
    }

    /// The token lives, in this namespace, and one of its policies allows it.
    fn authorise(&self, ask: &Ask<'_>) -> Result<(), (u16, Vec<String>)> {
        if ask.token.is_empty() {
            return Err(refuse(400, "missing client token"));
        }
        let token = self.living(ask.token).ok_or_else(denied)?;
        let inside = token.namespace.is_empty() || token.namespace == ask.namespace;
        let needed = match ask.method {
            "GET" => "read",
            "LIST" => "list",
            "DELETE" => "delete",
            _ => "update",
        };
        let granted = self.capabilities(token, ask.path);
        let allowed = granted.iter().any(|it| it == needed || it == "root");
        if inside && allowed {
            Ok(())
        } else {
            Err(denied())
        }
    }

    pub(super) fn living(&self, token: &str) -> Option<&Token> {
        let token = self.tokens.get(token)?;
        let now = self.now();
        token.ends.is_none_or(|ends| now < ends).then_some(token)
    }

    pub(super) fn capabilities(&self, token: &Token, path: &str) -> Vec<String> {
        if token.policies.iter().any(|policy| policy == "root") {
            return vec!["root".to_owned()];
        }
        let named = token
            .policies
            .iter()
            .filter_map(|name| self.policies.get(name));
        let mut all: Vec<String> = named.flat_map(|policy| policy.of(path)).collect();
        if all.is_empty() || all.iter().any(|it| it == "deny") {
            all = vec!["deny".to_owned()];
        }
        all
    }
}
