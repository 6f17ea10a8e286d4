//! `sys/…`: mounts, policies, capabilities, wrapping.

use std::time::Duration;

use serde_json::{Value, json};

use super::policy::Policy;
use super::state::{Shape, Vault, Wrapped};
use super::{Ask, Reply, denied, refuse};

impl Vault {
    pub(super) fn sys(&mut self, ask: &Ask<'_>) -> Reply {
        let (first, rest) = ask
            .path
            .trim_start_matches("sys/")
            .split_once('/')
            .unwrap_or((ask.path.trim_start_matches("sys/"), ""));
        match (ask.method, first, rest) {
            ("POST", "auth", mount) => {
                let place = (ask.namespace.to_owned(), mount.to_owned());
                self.mounts.insert(place, Default::default());
                Ok(Value::Null)
            }
            ("DELETE", "auth", mount) => {
                self.mounts
                    .remove(&(ask.namespace.to_owned(), mount.to_owned()));
                Ok(Value::Null)
            }
            ("PUT" | "POST", "policies", rest) => {
                let name = rest.trim_start_matches("acl/").to_owned();
                let policy = Policy::parse(ask.body["policy"].as_str().unwrap());
                self.policies.insert(name, policy);
                Ok(Value::Null)
            }
            ("DELETE", "policies", rest) => {
                self.policies.remove(rest.trim_start_matches("acl/"));
                Ok(Value::Null)
            }
            ("POST", "capabilities-self", "") => {
                let token = self.living(ask.token).ok_or_else(denied)?;
                let paths = ask.body["paths"].as_array().unwrap();
                let each = paths.iter().map(|path| {
                    let path = path.as_str().unwrap();
                    (path.to_owned(), json!(self.capabilities(token, path)))
                });
                let mut data: serde_json::Map<_, _> = each.collect();
                data.insert("capabilities".to_owned(), json!(["deny"]));
                let mut whole = match self.shape {
                    Shape::Both | Shape::Top => data.clone(),
                    Shape::Data => Default::default(),
                };
                if self.shape != Shape::Top {
                    whole.insert("data".to_owned(), data.into());
                }
                Ok(whole.into())
            }
            _ => Err(refuse(404, "unsupported path")),
        }
    }

    /// Keeps an answer for whoever brings the token it is replaced with.
    pub(super) fn wrap(&mut self, path: &str, content: Value, ttl: Duration) -> Value {
        let token = format!("hvs.wrap-{}", self.unique());
        let accessor = content["data"]["secret_id_accessor"].clone();
        let named = if self.names_wrapped {
            accessor
        } else {
            json!("")
        };
        let wrapped = Wrapped {
            ends: self.now() + ttl,
            path: path.to_owned(),
            content,
        };
        self.wrapped.insert(token.clone(), wrapped);
        json!({ "wrap_info": {
            "token": token, "accessor": self.unique(), "ttl": ttl.as_secs(), "creation_time": "2026-11-21T06:00:00Z",
            "creation_path": path, "wrapped_accessor": named,
        }})
    }

    /// Once.
    pub(super) fn unwrap(&mut self, token: &str) -> Reply {
        let found = self.wrapped.remove(token);
        let now = self.now();
        let found = found.filter(|it| now < it.ends);
        found.map(|it| it.content).ok_or_else(used_up)
    }

    /// What a wrapping token is for, without using it up; for anybody who has it.
    pub(super) fn wrapping(&self, token: &str) -> Reply {
        let found = self.wrapped.get(token);
        let now = self.now();
        let found = found.filter(|it| now < it.ends);
        let found = found.ok_or_else(used_up)?;
        let left = found.ends.saturating_duration_since(now);
        Ok(json!({ "data": {
            "creation_path": found.path, "creation_time": "2026-11-21T06:00:00Z", "creation_ttl": left.as_secs(),
        }}))
    }
}

fn used_up() -> (u16, Vec<String>) {
    refuse(400, "wrapping token is not valid or does not exist")
}
