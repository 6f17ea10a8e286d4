//! The MAC key as the configuration names it: the one place where its adapter is chosen.

use std::sync::Arc;

use keyturn_store::mac::{
    CloudKmsKey, KeyFileError, LocalMacKey, MacKey, MacKeyring,
    cloud_kms::{self, KeyName},
};

use crate::config::{CloudKms, Mac};

/// A MAC key, and the part of it that knows more than to sign and to verify.
pub enum Opened {
    /// Keys in files.
    Local(Arc<LocalMacKey>),
    /// Keys in Cloud KMS, with key files from before if there are any.
    CloudKms {
        /// The service.
        service: Arc<CloudKmsKey>,
        /// Key files that only verify.
        files: Option<Arc<LocalMacKey>>,
    },
}

impl Opened {
    /// Reads key files; asks no service. Blocks.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn open(config: &Mac) -> Result<Self, KeyFileError> {
        match config {
            Mac::Local {
                key_file,
                previous_key_files,
            } => {
                let files: Vec<_> = std::iter::once(key_file)
                    .chain(previous_key_files)
                    .collect();
                Ok(Self::Local(Arc::new(LocalMacKey::open(&files)?)))
            }
            Mac::CloudKms(config) => {
                let files = match config.previous_key_files.as_slice() {
                    [] => None,
                    files => Some(Arc::new(LocalMacKey::open(files)?)),
                };
                Ok(Self::CloudKms {
                    service: Arc::new(CloudKmsKey::new(settings(config))),
                    files,
                })
            }
        }
    }

    /// The port.
    #[must_use]
    pub fn key(&self) -> Arc<dyn MacKey> {
        match self {
            Self::Local(key) => key.clone(),
            Self::CloudKms {
                service,
                files: None,
            } => service.clone(),
            Self::CloudKms {
                service,
                files: Some(files),
            } => Arc::new(MacKeyring::new(service.clone(), vec![files.clone()])),
        }
    }
}

fn settings(config: &CloudKms) -> cloud_kms::Settings {
    let key: KeyName = config.key.clone();
    cloud_kms::Settings {
        previous_keys: config.previous_keys.clone(),
        endpoint: config.endpoint.clone(),
        timeout: config.timeout,
        attempt_timeout: config.attempt_timeout,
        ..cloud_kms::Settings::new(key, config.version)
    }
}
