//! `auth/token/…`: making, looking up, renewing and revoking.

use std::time::Duration;

use serde_json::{Value, json};

use super::state::{Token, Vault};
use super::{Ask, Reply, denied, refuse};

impl Vault {
    pub(super) fn token(&mut self, ask: &Ask<'_>) -> Reply {
        match (ask.method, ask.path) {
            ("POST", "auth/token/create") => {
                let policies = ask.body["policies"].as_array().cloned().unwrap_or_default();
                let policies = policies.iter().map(|it| it.as_str().unwrap().to_owned());
                let (ttl, max) = (
                    seconds(&ask.body["ttl"]),
                    seconds(&ask.body["explicit_max_ttl"]),
                );
                let renewable = ask.body["renewable"].as_bool().unwrap_or(true);
                Ok(self.make_token(ask.namespace, policies.collect(), ttl, max, renewable))
            }
            ("GET", "auth/token/lookup-self") => {
                let token = self.living(ask.token).ok_or_else(denied)?;
                Ok(json!({ "data": {
                    "ttl": token.left(self.now()), "renewable": token.renewable, "policies": token.policies,
                    "creation_ttl": token.ttl.as_secs(), "type": "service", "id": ask.token,
                }}))
            }
            ("POST", "auth/token/renew-self") => {
                let now = self.now();
                let token = self.tokens.get_mut(ask.token).ok_or_else(denied)?;
                if !token.renewable {
                    return Err(refuse(400, "lease is not renewable"));
                }
                let wanted = now + token.ttl;
                token.ends = Some(token.last.map_or(wanted, |last| wanted.min(last)));
                let left = token.left(now);
                Ok(json!({ "auth": {
                    "client_token": ask.token, "lease_duration": left, "renewable": true, "token_type": "service",
                }}))
            }
            ("LIST", "auth/token/accessors") => {
                let now = self.now();
                let living = self.tokens.values();
                let living = living.filter(|it| it.ends.is_none_or(|ends| now < ends));
                let keys: Vec<_> = living.map(|it| &it.accessor).collect();
                Ok(json!({ "data": { "keys": keys } }))
            }
            ("POST", "auth/token/revoke-self") => {
                self.tokens.remove(ask.token).ok_or_else(denied)?;
                Ok(Value::Null)
            }
            ("POST", "auth/token/revoke") => {
                self.tokens.remove(ask.body["token"].as_str().unwrap());
                Ok(Value::Null)
            }
            _ => Err(refuse(404, "unsupported path")),
        }
    }

    pub(super) fn make_token(
        &mut self,
        namespace: &str,
        policies: Vec<String>,
        ttl: u64,
        max: u64,
        renewable: bool,
    ) -> Value {
        let id = format!("hvs.{}", self.unique());
        let accessor = self.unique();
        let ttl = if ttl == 0 { 32 * 24 * 3600 } else { ttl };
        let now = self.now();
        let last = (max > 0).then(|| now + Duration::from_secs(max));
        let token = Token {
            accessor: accessor.clone(),
            namespace: namespace.to_owned(),
            policies,
            renewable,
            ttl: Duration::from_secs(ttl),
            ends: Some(now + Duration::from_secs(ttl)),
            last,
        };
        self.tokens.insert(id.clone(), token);
        json!({ "auth": {
            "client_token": id, "accessor": accessor, "lease_duration": ttl, "renewable": renewable,
            "token_type": "service", "orphan": true,
        }})
    }
}

/// Seconds as a number or as text such as "20m".
pub(super) fn seconds(value: &Value) -> u64 {
    match value {
        Value::Number(number) => number.as_u64().unwrap(),
        Value::String(text) => {
            let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
                Some(digits) => (digits, text.chars().last().unwrap()),
                None => (text.as_str(), 's'),
            };
            let number: u64 = digits.parse().unwrap();
            number
                * match unit {
                    'h' => 3600,
                    'm' => 60,
                    _ => 1,
                }
        }
        _ => 0,
    }
}
