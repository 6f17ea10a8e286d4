//! `opaque x<V>`: vectors with the variable-size length of RFC 9420 §2.1.2.
//!
//! Lengths must be encoded minimally and a reader must be emptied: one value has one encoding.

use super::group_data::GroupDataError;

/// Appends `bytes` with its length in front.
///
/// Lengths of 2^30 and more cannot be expressed; they are refused.
pub fn put_vector(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), GroupDataError> {
    let length = u32::try_from(bytes.len()).map_err(|_| GroupDataError::TooLong)?;
    match length {
        0..=0x3f => out.push(length as u8),
        0x40..=0x3fff => out.extend_from_slice(&((length as u16) | 0x4000).to_be_bytes()),
        0x4000..=0x3fff_ffff => out.extend_from_slice(&(length | 0x8000_0000).to_be_bytes()),
        _ => return Err(GroupDataError::TooLong),
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Reads from the front of a slice.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Exactly `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], GroupDataError> {
        let (head, tail) = self
            .0
            .split_at_checked(n)
            .ok_or(GroupDataError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    /// A fixed-size array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], GroupDataError> {
        self.take(N)?
            .try_into()
            .map_err(|_| GroupDataError::Truncated)
    }

    /// A length and that many bytes.
    pub fn vector(&mut self) -> Result<&'a [u8], GroupDataError> {
        let first = self.array::<1>()?[0];
        let rest = usize::from(first >> 6);
        if rest == 3 {
            return Err(GroupDataError::Length);
        }
        let extra = (1_usize << rest) - 1;
        let mut length = u32::from(first & 0x3f);
        for byte in self.take(extra)? {
            length = (length << 8) | u32::from(*byte);
        }
        let minimal = match rest {
            0 => true,
            1 => length >= 0x40,
            _ => length >= 0x4000,
        };
        if !minimal {
            return Err(GroupDataError::Length);
        }
        self.take(length as usize)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
