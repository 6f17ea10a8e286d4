//! One look at Vault for `keyturn doctor`: is our token good, can it do what is needed, and can it do more?

use std::time::Duration;

use super::client::Client;
use super::settings::{VaultAuth, VaultSettings};
use super::transport::{Call, VaultSetupError};
use super::wire::{self, PathsBody, TokenProperties};
use crate::devices::issuer::{Reason, RoleName};

/// What one look at Vault found.
#[derive(Debug)]
pub struct VaultReport {
    /// Whether the server could serve us.
    pub server: Result<(), Reason>,
    /// Our token, when it is good.
    pub token: Result<TokenReport, Reason>,
    /// Per role: whether its id can be read.
    pub roles: Vec<(RoleName, Result<(), Reason>)>,
    /// What our token may not do and should, as (path, capability). `Err` when Vault did not say.
    pub missing: Result<Vec<(String, &'static str)>, Reason>,
    /// What our token may do and should not, as (path, capabilities).
    pub excess: Vec<(String, String)>,
}

/// Our own token.
#[derive(Debug)]
pub struct TokenReport {
    /// What is left of it; `None` for one that never ends.
    pub ttl: Option<Duration>,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// Whether it is a root token.
    pub root: bool,
}

/// Asks Vault, past every cache.
///
/// # Errors
/// [`VaultSetupError`] when there is no client to ask with.
pub async fn examine(
    settings: VaultSettings,
    roles: &[RoleName],
) -> Result<VaultReport, VaultSetupError> {
    let client = Client::new(settings)?;
    let server = client.server_health().await.map_err(|failure| failure.why);
    let token = client.token_report().await;
    let mut found = Vec::new();
    for role in roles {
        let answer = client.role_id(role).await;
        found.push((
            role.clone(),
            answer.map(drop).map_err(|failure| failure.why),
        ));
    }
    let (missing, excess) = match client.capabilities(roles).await {
        Ok((missing, excess)) => (Ok(missing), excess),
        Err(why) => (Err(why), Vec::new()),
    };
    // What we have logged in for ourselves ends here.
    client.give_back().await;
    Ok(VaultReport {
        server,
        token,
        roles: found,
        missing,
        excess,
    })
}

impl Client {
    async fn token_report(&self) -> Result<TokenReport, Reason> {
        let call = Call::get("auth/token/lookup-self".to_owned());
        let answer = self.call("lookup_token", &call).await;
        let answer = answer
            .and_then(super::transport::Answer::good)
            .map_err(|failure| failure.why)?;
        let token: TokenProperties = wire::data(&answer).map_err(|failure| failure.why)?;
        Ok(TokenReport {
            ttl: (token.ttl > 0).then(|| Duration::from_secs(token.ttl)),
            renewable: token.renewable,
            root: token.policies.iter().any(|policy| policy == "root"),
        })
    }

    /// What the token may not do and should, and what it may do and should not.
    async fn capabilities(
        &self,
        roles: &[RoleName],
    ) -> Result<(Vec<(String, &'static str)>, Vec<(String, String)>), Reason> {
        let mut needed: Vec<(String, &'static str)> = roles
            .iter()
            .flat_map(|role| {
                [
                    ("role-id", "read"),
                    ("secret-id", "update"),
                    ("secret-id", "list"),
                    ("secret-id-accessor/lookup", "update"),
                    ("secret-id-accessor/destroy", "update"),
                ]
                .map(|(rest, capability)| (self.role_path(role, rest), capability))
            })
            .collect();
        // Without these our token ends unseen, or outlives us.
        needed.extend([
            ("auth/token/lookup-self".to_owned(), "read"),
            ("auth/token/renew-self".to_owned(), "update"),
        ]);
        if matches!(self.settings.auth, VaultAuth::AppRole { .. }) {
            needed.push(("auth/token/revoke-self".to_owned(), "update"));
        }
        let forbidden = self.forbidden(roles);
        let mut paths: Vec<String> = needed.iter().map(|(path, _)| path.clone()).collect();
        paths.extend(forbidden.iter().cloned());
        paths.dedup();
        let body = wire::body(&PathsBody { paths: &paths }).map_err(|failure| failure.why)?;
        let call = Call::post("sys/capabilities-self".to_owned(), body);
        let answer = self.call("capabilities", &call).await;
        let answer = answer
            .and_then(super::transport::Answer::good)
            .map_err(|failure| failure.why)?;
        let granted = wire::capabilities(&answer).map_err(|failure| failure.why)?;
        // Silence about a path is no leave, and no refusal either.
        if paths.iter().any(|path| !granted.contains_key(path)) {
            return Err(Reason::Garbled);
        }
        let of = |path: &str| -> Vec<&str> {
            let listed = granted.get(path).into_iter().flatten();
            listed
                .map(String::as_str)
                .filter(|capability| *capability != "deny")
                .collect()
        };
        let missing = needed
            .into_iter()
            .filter(|(path, capability)| {
                let granted = of(path);
                // Vault asks for "update" where a thing exists already and "create" where it does not; an issue is always an update.
                !granted.contains(capability) && !granted.contains(&"root")
            })
            .collect();
        let excess = forbidden
            .into_iter()
            .filter_map(|path| {
                let granted = of(&path).join(", ");
                (!granted.is_empty()).then_some((path, granted))
            })
            .collect();
        Ok((missing, excess))
    }

    /// Paths on which a token for issuing has no business: what makes roles, what chooses a secret_id, other roles, other tokens, policies.
    fn forbidden(&self, roles: &[RoleName]) -> Vec<String> {
        let mount = &self.settings.mount;
        let mut paths: Vec<String> = roles
            .iter()
            .flat_map(|role| {
                [
                    format!("auth/{mount}/role/{role}"),
                    self.role_path(role, "custom-secret-id"),
                    self.role_path(role, "policies"),
                ]
            })
            .collect();
        paths.extend([
            format!("auth/{mount}/role/keyturn-doctor-no-such-role/secret-id"),
            "auth/token/create".to_owned(),
            "sys/policies/acl/keyturn-doctor-no-such-policy".to_owned(),
            "sys/auth/keyturn-doctor-no-such-mount".to_owned(),
        ]);
        paths
    }
}
