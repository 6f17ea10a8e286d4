//! `auth/<mount>/…`: roles and their secret_ids.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use keyturn::devices::issuer::Cidr;
use serde_json::{Value, json};

use super::state::{Role, SecretId, Vault};
use super::tokens::seconds;
use super::{Ask, Reply, denied, refuse};

/// A namespace and a mount.
type Place = (String, String);

/// Where every test's device is.
const DEVICE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Vault {
    pub(super) fn approle(&mut self, ask: &Ask<'_>) -> Reply {
        let (place, rest) = self.place(ask)?;
        let mut parts = rest.splitn(3, '/');
        let (Some("role"), Some(name)) = (parts.next(), parts.next()) else {
            return Err(refuse(404, "unsupported path"));
        };
        let (name, rest) = (name.to_lowercase(), parts.next().unwrap_or_default());
        if (ask.method, rest) == ("POST", "") {
            let role = Role {
                role_id: self.unique(),
                settings: ask.body.clone(),
                secret_ids: Default::default(),
            };
            self.mounts.get_mut(&place).unwrap().insert(name, role);
            return Ok(Value::Null);
        }
        let (accessor, secret_id) = (self.unique(), self.unique());
        let now = self.now();
        let role = self.mounts.get_mut(&place).unwrap().get_mut(&name);
        let missing = format!("role \"{name}\" does not exist");
        match (ask.method, rest, role) {
            ("GET", "role-id", None) => Err((404, Vec::new())),
            ("POST", "secret-id", None) => Err(refuse(404, &missing)),
            (_, _, None) => Err(refuse(
                500,
                &format!("1 error occurred:\n\t* {missing}\n\n"),
            )),
            ("GET", "role-id", Some(role)) => Ok(json!({ "data": { "role_id": role.role_id } })),
            ("LIST", "secret-id", Some(role)) => {
                let keys: Vec<_> = role.secret_ids.keys().collect();
                if keys.is_empty() {
                    return Err((404, Vec::new()));
                }
                Ok(json!({ "data": { "keys": keys } }))
            }
            ("POST", "secret-id", Some(role)) => issue(role, &ask.body, accessor, secret_id, now),
            ("POST", "secret-id-accessor/lookup", Some(role)) => {
                let accessor = ask.body["secret_id_accessor"].as_str().unwrap();
                match role
                    .secret_ids
                    .get(accessor)
                    .filter(|found| found.alive(now))
                {
                    Some(found) => Ok(json!({ "data": {
                        "secret_id_accessor": accessor, "secret_id_num_uses": found.uses, "secret_id_ttl": found.ttl,
                        "metadata": found.metadata, "cidr_list": found.blocks, "token_bound_cidrs": found.blocks,
                        "creation_time": "2026-11-21T06:00:00Z", "expiration_time": "2026-11-21T18:00:00Z",
                    }})),
                    None => Err(refuse(404, &unknown(accessor))),
                }
            }
            ("POST", "secret-id-accessor/destroy", Some(role)) => {
                let accessor = ask.body["secret_id_accessor"].as_str().unwrap();
                match role.secret_ids.remove(accessor) {
                    Some(_) => Ok(Value::Null),
                    // Really: its handler returns a bare error.
                    None => Err(refuse(
                        500,
                        &format!("1 error occurred:\n\t* {}\n\n", unknown(accessor)),
                    )),
                }
            }
            _ => Err(refuse(404, "unsupported path")),
        }
    }

    pub(super) fn log_in(&mut self, ask: &Ask<'_>) -> Reply {
        let (place, _) = self.place(ask)?;
        let invalid = || refuse(400, "invalid role or secret ID");
        let now = self.now();
        let roles = self.mounts.get_mut(&place).ok_or_else(denied)?;
        let role = roles
            .values_mut()
            .find(|role| json!(role.role_id) == ask.body["role_id"])
            .ok_or_else(invalid)?;
        let found = role
            .secret_ids
            .iter_mut()
            .find(|(_, it)| json!(it.secret_id) == ask.body["secret_id"]);
        let (accessor, secret_id) = found.ok_or_else(invalid)?;
        let accessor = accessor.clone();
        if !secret_id.alive(now) {
            role.secret_ids.remove(&accessor);
            return Err(invalid());
        }
        let mut blocks = secret_id
            .blocks
            .iter()
            .map(|it| it.parse::<Cidr>().unwrap());
        if !secret_id.blocks.is_empty() && !blocks.any(|block| block.contains(DEVICE)) {
            return Err(refuse(
                400,
                "source address unauthorized through CIDR restrictions on the secret ID",
            ));
        }
        match secret_id.uses {
            0 => {}
            1 => drop(role.secret_ids.remove(&accessor)),
            _ => secret_id.uses -= 1,
        }
        let settings = role.settings.clone();
        let policies = settings["token_policies"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let policies = policies.iter().map(|it| it.as_str().unwrap().to_owned());
        let (ttl, max) = (
            seconds(&settings["token_ttl"]),
            seconds(&settings["token_max_ttl"]),
        );
        Ok(self.make_token(ask.namespace, policies.collect(), ttl, max, true))
    }

    /// The mount that a path names, and what follows.
    fn place(&self, ask: &Ask<'_>) -> Result<(Place, String), (u16, Vec<String>)> {
        let below = ask.path.trim_start_matches("auth/");
        let mounts = self
            .mounts
            .keys()
            .filter(|(namespace, _)| namespace == ask.namespace);
        let found = mounts.filter_map(|(_, mount)| {
            let rest = below.strip_prefix(mount.as_str())?.strip_prefix('/')?;
            Some((mount.clone(), rest.to_owned()))
        });
        let (mount, rest) = found
            .max_by_key(|(mount, _)| mount.len())
            .ok_or_else(|| refuse(404, "no handler for route"))?;
        Ok(((ask.namespace.to_owned(), mount), rest))
    }
}

fn issue(
    role: &mut Role,
    body: &Value,
    accessor: String,
    secret_id: String,
    now: Instant,
) -> Reply {
    let (limit, most) = (
        seconds(&role.settings["secret_id_ttl"]),
        role.settings["secret_id_num_uses"].as_u64().unwrap_or(0),
    );
    let ttl = if body["ttl"].is_null() {
        limit
    } else {
        seconds(&body["ttl"])
    };
    if limit > 0 && (ttl == 0 || ttl > limit) {
        return Err(refuse(
            400,
            "ttl cannot be longer than the role's secret_id_ttl",
        ));
    }
    let uses = body["num_uses"].as_u64().unwrap_or(most);
    if most > 0 && (uses == 0 || uses > most) {
        return Err(refuse(
            400,
            "num_uses cannot be higher than the role's secret_id_num_uses",
        ));
    }
    let metadata = body["metadata"].as_str().unwrap_or("{}");
    let Ok(metadata) = serde_json::from_str::<Value>(metadata) else {
        return Err(refuse(400, "failed to parse metadata"));
    };
    let blocks = body["cidr_list"].as_array().cloned().unwrap_or_default();
    let blocks = blocks
        .iter()
        .map(|it| it.as_str().unwrap().to_owned())
        .collect();
    let made = SecretId {
        secret_id: secret_id.clone(),
        ends: (ttl > 0).then(|| now + Duration::from_secs(ttl)),
        ttl,
        uses,
        metadata,
        blocks,
    };
    role.secret_ids.insert(accessor.clone(), made);
    Ok(json!({ "data": {
        "secret_id": secret_id, "secret_id_accessor": accessor, "secret_id_ttl": ttl, "secret_id_num_uses": uses,
    }}))
}

fn unknown(accessor: &str) -> String {
    format!("failed to find accessor entry for secret_id_accessor: {accessor:?}")
}
