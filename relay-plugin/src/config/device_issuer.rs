//! `[devices.issuer]`: where devices' secret_ids come from.

use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use super::{
    duration,
    error::ConfigError,
    secret::SecretRef,
    sections::{DAY, HOUR, MINUTE},
    source::Keys,
};
use crate::devices::issuer::{Cidr, MountPath, VaultAddress, embedded, vault};

/// Logins that one source may try in a minute, unless the configuration says otherwise. A whole fleet can stand behind one address, and after a mass invalidation each
/// device tries twice: with what has died, and with what it was given. So 10,000 devices are through in seven minutes; and one source takes a quarter of what all have.
pub const LOGINS_PER_MINUTE: u32 = 3000;
/// Logins that all together may try in a second, unless the configuration says otherwise.
pub const LOGINS_PER_SECOND: u32 = 200;

/// How secret_ids are issued, and by whom.
#[derive(Debug)]
pub struct DeviceIssuer {
    /// Who issues them.
    pub kind: IssuerKind,
    /// How long a secret_id lives.
    pub secret_id_ttl: Duration,
    /// Logins it allows; 0 for any number.
    pub num_uses: u32,
    /// Networks it may be used from; empty for any.
    pub cidrs: Vec<Cidr>,
    /// Lifetime of the wrapping token that devices get instead of the secret_id; `None` for the secret_id itself.
    pub wrap_ttl: Option<Duration>,
}

impl DeviceIssuer {
    /// What the issuer calls itself ([`crate::devices::issuer::SecretIdIssuer::name`]); `None` when there is none.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match &self.kind {
            IssuerKind::None => None,
            IssuerKind::Embedded { .. } => Some(embedded::NAME.to_owned()),
            IssuerKind::Vault(section) => {
                Some(vault::name(section.namespace.as_ref(), &section.mount))
            }
        }
    }
}

/// Who issues secret_ids.
#[derive(Debug)]
pub enum IssuerKind {
    /// Nobody: devices are not served.
    None,
    /// Ourselves, in the store.
    Embedded {
        /// Logins that one source may try in a minute.
        logins_per_minute: NonZeroU32,
        /// Logins that all together may try in a second.
        logins_per_second: NonZeroU32,
    },
    /// Vault or OpenBao.
    Vault(Box<VaultSection>),
}

/// How Vault is reached.
#[derive(Debug)]
pub struct VaultSection {
    /// Where it is.
    pub address: VaultAddress,
    /// Namespace, if any.
    pub namespace: Option<MountPath>,
    /// Where the devices' AppRole method is mounted, below `auth/`.
    pub mount: MountPath,
    /// The only CAs trusted, PEM; the machine's list when absent.
    pub ca_file: Option<PathBuf>,
    /// Who we are there.
    pub auth: VaultLogin,
    /// Longest time of one exchange.
    pub timeout: Duration,
    /// Most exchanges under way.
    pub max_in_flight: usize,
    /// How long a call waits for its turn.
    pub max_wait: Duration,
}

/// Our own credential at Vault.
#[derive(Debug)]
pub enum VaultLogin {
    /// A token.
    Token(Arc<SecretRef>),
    /// An AppRole login of our own.
    AppRole {
        /// Where it is mounted.
        mount: MountPath,
        /// Our role's id.
        role_id: String,
        /// Our secret_id.
        secret_id: Arc<SecretRef>,
    },
}

const MOUNT: &str = "a path such as \"approle\"";
const BLOCKS: &str = "a list of address blocks such as \"10.2.0.0/16\"";

fn conflict(key: &str, reason: &str) -> ConfigError {
    ConfigError::Conflict {
        key: format!("devices.issuer.{key}"),
        reason: reason.to_owned(),
    }
}

/// What only Vault needs, before it is known whether Vault is meant: every key is read, so that none is unknown.
struct Given {
    address: Option<VaultAddress>,
    namespace: Option<MountPath>,
    mount: Option<MountPath>,
    ca_file: Option<PathBuf>,
    token: Option<SecretRef>,
    own_mount: Option<MountPath>,
    own_role_id: Option<String>,
    own_secret_id: Option<SecretRef>,
    timeout: Duration,
    max_in_flight: usize,
    max_wait: Duration,
}

impl DeviceIssuer {
    pub(super) fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let second = Duration::from_secs(1);
        let kinds = "\"none\", \"embedded\" or \"vault\"";
        let kind = keys.text("devices.issuer.kind", kinds, |text| {
            ["none", "embedded", "vault"]
                .into_iter()
                .find(|kind| *kind == text)
        })?;
        let secret_id_ttl =
            keys.duration("devices.issuer.secret_id_ttl", MINUTE..=DAY * 30, HOUR * 12)?;
        let num_uses = keys.number("devices.issuer.num_uses", 0..=1_000_000, 0)? as u32;
        let cidrs = keys.list("devices.issuer.cidrs", BLOCKS, |text| text.parse().ok())?;
        let wrap_range = second * 10..=DAY;
        let wrap_ttl = keys.text(
            "devices.issuer.wrap_ttl",
            "a duration from \"10s\" to \"1d\"",
            |text| duration::parse(text).filter(|ttl| wrap_range.contains(ttl)),
        )?;
        let (logins_per_minute, logins_per_second) = (
            positive(keys.number(
                "devices.issuer.logins_per_minute",
                1..=1_000_000,
                LOGINS_PER_MINUTE.into(),
            )?),
            positive(keys.number(
                "devices.issuer.logins_per_second",
                1..=100_000,
                LOGINS_PER_SECOND.into(),
            )?),
        );
        let given = Given::read(keys)?;
        let kind = match kind.unwrap_or("none") {
            "vault" => IssuerKind::Vault(Box::new(given.vault()?)),
            other => {
                given.none()?;
                if wrap_ttl.is_some() {
                    return Err(conflict(
                        "wrap_ttl",
                        "only Vault wraps; kind is not \"vault\"",
                    ));
                }
                match other {
                    "embedded" => IssuerKind::Embedded {
                        logins_per_minute,
                        logins_per_second,
                    },
                    _ => IssuerKind::None,
                }
            }
        };
        Ok(Self {
            kind,
            secret_id_ttl,
            num_uses,
            cidrs: cidrs.unwrap_or_default(),
            wrap_ttl,
        })
    }
}

/// The ranges begin at 1.
fn positive(number: u64) -> NonZeroU32 {
    u32::try_from(number)
        .ok()
        .and_then(NonZeroU32::new)
        .unwrap_or(NonZeroU32::MIN)
}

impl Given {
    fn read(keys: &mut Keys) -> Result<Self, ConfigError> {
        let second = Duration::from_secs(1);
        let path = |text: &str| text.parse().ok();
        Ok(Self {
            address: keys.text("devices.issuer.address", VaultAddress::EXPECTED, |text| {
                VaultAddress::parse(text).ok()
            })?,
            namespace: keys.text(
                "devices.issuer.namespace",
                "a path such as \"plant/north\"",
                path,
            )?,
            mount: keys.text("devices.issuer.mount", MOUNT, path)?,
            ca_file: keys.path("devices.issuer.ca_file", "the path of a PEM file")?,
            token: keys.optional_secret("devices.issuer.token", "a Vault token")?,
            own_mount: keys.text("devices.issuer.own_mount", MOUNT, path)?,
            own_role_id: keys.text("devices.issuer.own_role_id", "our own role_id", |text| {
                (!text.is_empty()).then(|| text.to_owned())
            })?,
            own_secret_id: keys
                .optional_secret("devices.issuer.own_secret_id", "our own secret_id")?,
            timeout: keys.duration("devices.issuer.timeout", second..=MINUTE, second * 5)?,
            max_in_flight: keys.number("devices.issuer.max_in_flight", 1..=1024, 16)? as usize,
            max_wait: keys.duration("devices.issuer.max_wait", second..=MINUTE * 5, second * 30)?,
        })
    }

    fn vault(self) -> Result<VaultSection, ConfigError> {
        let missing = |key: &str, expected: &str| ConfigError::Missing {
            key: format!("devices.issuer.{key}"),
            expected: expected.to_owned(),
        };
        let auth = match (self.token, self.own_role_id, self.own_secret_id) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                let reason =
                    "given together with a login of our own (own_role_id, own_secret_id); give one";
                return Err(conflict("token", reason));
            }
            (Some(token), None, None) if self.own_mount.is_none() => {
                VaultLogin::Token(Arc::new(token))
            }
            (Some(_), None, None) => {
                return Err(conflict(
                    "own_mount",
                    "is for a login of our own, and a token is given",
                ));
            }
            (None, Some(role_id), Some(secret_id)) => VaultLogin::AppRole {
                mount: self.own_mount.map_or_else(approle, Ok)?,
                role_id,
                secret_id: Arc::new(secret_id),
            },
            (None, None, Some(_)) => return Err(missing("own_role_id", "our own role_id")),
            (None, Some(_), None) => {
                return Err(missing(
                    "own_secret_id_file",
                    "the path of a file holding our own secret_id",
                ));
            }
            (None, None, None) => {
                return Err(missing(
                    "token_file",
                    "the path of a file holding a Vault token, or a login of our own in own_role_id and own_secret_id_file",
                ));
            }
        };
        Ok(VaultSection {
            address: self
                .address
                .ok_or_else(|| missing("address", VaultAddress::EXPECTED))?,
            namespace: self.namespace,
            mount: self.mount.map_or_else(approle, Ok)?,
            ca_file: self.ca_file,
            auth,
            timeout: self.timeout,
            max_in_flight: self.max_in_flight,
            max_wait: self.max_wait,
        })
    }

    /// Whoever names Vault's keys means Vault.
    fn none(self) -> Result<(), ConfigError> {
        let named = [
            ("address", self.address.is_some()),
            ("namespace", self.namespace.is_some()),
            ("mount", self.mount.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("token", self.token.is_some()),
            ("own_mount", self.own_mount.is_some()),
            ("own_role_id", self.own_role_id.is_some()),
            ("own_secret_id", self.own_secret_id.is_some()),
        ];
        match named.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(conflict(key, "needs devices.issuer.kind = \"vault\"")),
            None => Ok(()),
        }
    }
}

fn approle() -> Result<MountPath, ConfigError> {
    "approle"
        .parse()
        .map_err(|_| conflict("mount", "has no default"))
}
