//! An operator of any server of Vault's API: sets up what devices and the service need, and looks at it from outside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyturn::config::SecretRef;
use keyturn::devices::issuer::RoleName;
use keyturn::devices::issuer::vault::{VaultAddress, VaultAuth, VaultSettings};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// The least-privilege policy that ships, for another mount.
pub fn hcl(mount: &str) -> String {
    include_str!("../../../docs/device-issuer/vault-policy.hcl")
        .replace("auth/approle/", &format!("auth/{mount}/"))
}

pub(super) fn client(ca: Option<&Path>) -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        // RustyVault closes idle connections after seconds: a request on one that is being closed would be lost.
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(60));
    let builder = match ca {
        Some(path) => {
            let pem = std::fs::read(path).unwrap();
            builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).unwrap())
        }
        None => builder,
    };
    builder.build().unwrap()
}

/// Somebody with a token and an HTTP client.
#[derive(Clone)]
pub struct Operator {
    address: String,
    token: String,
    namespace: Option<String>,
    ca: Option<PathBuf>,
    client: reqwest::Client,
}

/// A mount with one role, made for one test.
pub struct Stand {
    pub operator: Operator,
    pub mount: String,
    pub role: RoleName,
    /// Holds the service's own secrets as files.
    folder: tempfile::TempDir,
}

impl Operator {
    pub fn new(address: &str, token: &str, ca: Option<PathBuf>) -> Self {
        Self {
            address: address.trim_end_matches('/').to_owned(),
            token: token.to_owned(),
            namespace: None,
            client: client(ca.as_deref()),
            ca,
        }
    }

    /// The Vault that the environment names.
    pub fn of_the_environment() -> Option<Self> {
        let address = std::env::var("VAULT_ADDR")
            .ok()
            .filter(|it| !it.is_empty())?;
        let token = std::env::var("VAULT_TOKEN")
            .unwrap_or_else(|_| panic!("VAULT_ADDR is set and VAULT_TOKEN is not"));
        let ca = std::env::var_os("VAULT_CACERT").map(PathBuf::from);
        Some(Self {
            namespace: std::env::var("VAULT_NAMESPACE")
                .ok()
                .filter(|it| !it.is_empty()),
            ..Self::new(&address, &token, ca)
        })
    }

    /// The token.
    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Whether it is RustyVault, which has no `sys/health`; Vault and OpenBao always answer there.
    pub async fn is_rvault(&self) -> bool {
        let root = Self {
            namespace: None,
            ..self.clone()
        };
        let (status, _) = root.ask_as("", "GET", "sys/health", Value::Null).await;
        status == StatusCode::NOT_FOUND
    }

    /// One request as somebody; status and body.
    pub async fn ask_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let method = method.parse().unwrap();
        let mut request = self
            .client
            .request(method, format!("{}/v1/{path}", self.address));
        if !token.is_empty() {
            request = request.header("x-vault-token", token);
        }
        if let Some(namespace) = &self.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// One request that must succeed.
    pub async fn say(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask_as(&self.token, method, path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    /// A mount of its own with the role `river-iot`.
    pub async fn stand(&self, role: Value) -> Stand {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mount = format!("keyturn-test-{}-{number}", std::process::id());
        self.say(
            "POST",
            &format!("sys/auth/{mount}"),
            json!({ "type": "approle" }),
        )
        .await;
        let stand = Stand {
            operator: self.clone(),
            mount,
            role: "river-iot".parse().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        let path = stand.path("role/river-iot");
        self.say("POST", &path, role).await;
        stand
    }
}

impl Stand {
    /// A path below the mount.
    pub fn path(&self, rest: &str) -> String {
        format!("auth/{}/{rest}", self.mount)
    }

    /// Settings for a client that has the operator's own token.
    pub fn settings(&self) -> VaultSettings {
        self.settings_with(&self.operator.token)
    }

    /// Settings for a client that has this token.
    pub fn settings_with(&self, token: &str) -> VaultSettings {
        self.settings_as(VaultAuth::Token(self.secret("token", token)))
    }

    pub fn settings_as(&self, auth: VaultAuth) -> VaultSettings {
        VaultSettings {
            address: VaultAddress::parse(&self.operator.address).unwrap(),
            namespace: self
                .operator
                .namespace
                .as_ref()
                .map(|it| it.parse().unwrap()),
            mount: self.mount.parse().unwrap(),
            ca_file: self.operator.ca.clone(),
            auth,
            timeout: Duration::from_secs(20),
            max_in_flight: 8,
            max_wait: Duration::from_secs(20),
            instance: "keyturn-test".to_owned(),
        }
    }

    /// A secret of the service, in a file as it is given them; the same name replaces it.
    pub fn secret(&self, name: &str, text: &str) -> Arc<SecretRef> {
        Arc::new(SecretRef::file(
            "devices.issuer.token",
            self.secret_file(name, text),
        ))
    }

    /// The file of [`Stand::secret`].
    pub fn secret_file(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// A second role on the mount for the service itself, and how it logs in there.
    pub async fn own_login(&self, role: Value) -> VaultAuth {
        let own = self.path("role/keyturn");
        self.operator.say("POST", &own, role).await;
        let id = self
            .operator
            .say("GET", &format!("{own}/role-id"), Value::Null)
            .await;
        let secret_id = self
            .operator
            .say("POST", &format!("{own}/secret-id"), json!({}))
            .await;
        VaultAuth::AppRole {
            mount: self.mount.parse().unwrap(),
            role_id: id["data"]["role_id"].as_str().unwrap().to_owned(),
            secret_id: self.secret(
                "secret_id",
                secret_id["data"]["secret_id"].as_str().unwrap(),
            ),
        }
    }

    /// Installs the policy that ships as `<mount>-issuer`, for this mount. A server without policies takes it as well, or says so; then nothing is enforced.
    pub async fn least_privileged_policy(&self) {
        let path = format!("sys/policies/acl/{}-issuer", self.mount);
        let body = json!({ "policy": hcl(&self.mount) });
        let token = &self.operator.token;
        let (status, answer) = self.operator.ask_as(token, "PUT", &path, body).await;
        assert!(
            status.is_success() || status == StatusCode::NOT_FOUND,
            "{status} {answer}"
        );
    }

    /// A token under the policy that ships.
    pub async fn least_privileged_token(&self, more: Value) -> String {
        self.least_privileged_policy().await;
        let policy = format!("{}-issuer", self.mount);
        let mut body = json!({ "policies": [policy], "no_default_policy": true });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let made = self.operator.say("POST", "auth/token/create", body).await;
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// Logs in as a device; the token, or `None` when refused.
    pub async fn log_in(&self, role_id: &str, secret_id: &str) -> Option<String> {
        let body = json!({ "role_id": role_id, "secret_id": secret_id });
        let (status, answer) = self
            .operator
            .ask_as("", "POST", &self.path("login"), body)
            .await;
        let token = answer["auth"]["client_token"].as_str().map(str::to_owned);
        assert_eq!(token.is_some(), status.is_success(), "{status} {answer}");
        token
    }

    /// What the server knows of an accessor.
    pub async fn look_up(&self, accessor: &str) -> Option<Value> {
        let path = self.path(&format!("role/{}/secret-id-accessor/lookup", self.role));
        let body = json!({ "secret_id_accessor": accessor });
        let token = &self.operator.token;
        let (status, answer) = self.operator.ask_as(token, "POST", &path, body).await;
        (status == StatusCode::OK).then(|| answer["data"].clone())
    }

    /// Accessors of everything alive.
    pub async fn accessors(&self) -> Vec<String> {
        let path = self.path(&format!("role/{}/secret-id", self.role));
        let token = &self.operator.token;
        let (status, answer) = self
            .operator
            .ask_as(token, "LIST", &path, Value::Null)
            .await;
        if status == StatusCode::NOT_FOUND {
            return Vec::new();
        }
        let keys = answer["data"]["keys"].as_array().unwrap();
        keys.iter()
            .map(|key| key.as_str().unwrap().to_owned())
            .collect()
    }

    /// Takes the mount away again, from a server that others use as well.
    pub async fn clear(self) {
        let path = format!("sys/auth/{}", self.mount);
        self.operator.say("DELETE", &path, Value::Null).await;
        let policy = format!("sys/policies/acl/{}-issuer", self.mount);
        let token = &self.operator.token;
        let _may_not_exist = self
            .operator
            .ask_as(token, "DELETE", &policy, Value::Null)
            .await;
    }
}
