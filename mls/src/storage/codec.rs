//! How OpenMLS values become bytes: CBOR, because it is compact for binary data and, unlike the compact
//! positional formats, reads the self-describing parts of OpenMLS's stored types.

use openmls_sqlite_storage::Codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// See the module.
#[derive(Default)]
pub(crate) struct Cbor;

/// A value of OpenMLS did not fit the codec.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CborError {
    #[error("could not be written: {0}")]
    Write(#[from] ciborium::ser::Error<std::io::Error>),
    #[error("could not be read: {0}")]
    Read(#[from] ciborium::de::Error<std::io::Error>),
}

impl Codec for Cbor {
    type Error = CborError;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        let mut out = Vec::new();
        ciborium::into_writer(value, &mut out)?;
        Ok(out)
    }

    fn from_slice<T: DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        Ok(ciborium::from_reader(slice)?)
    }
}
