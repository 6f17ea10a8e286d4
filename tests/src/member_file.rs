//! A member database as somebody sees it who has the file and its key: every cell of every table, and every page, free ones and those of the
//! write-ahead log included.
//!
//! The pages are decrypted here and not by SQLite, which shows only what is in use. SQLCipher 4: each page is AES-256-CBC under the raw key, with
//! its initialisation vector and MAC in the last 80 bytes; the first 16 bytes of the file are a salt in the place of SQLite's own.

use std::path::Path;

use aws_lc_rs::cipher::{AES_256, DecryptingKey, DecryptionContext, UnboundCipherKey};
use ciborium::Value;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

const PAGE: usize = 4096;
const SALT: usize = 16;
/// Initialisation vector (16) and HMAC-SHA512 (64).
const RESERVE: usize = 80;
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// The database through its key (64 hex digits), without the member.
pub fn keyed(file: &Path, key: &str) -> Connection {
    let db = Connection::open(file).unwrap();
    db.execute_batch(&format!("PRAGMA key = \"x'{key}'\";"))
        .unwrap();
    db
}

/// Every text and blob of every table.
pub fn cells(file: &Path, key: &str) -> Vec<Vec<u8>> {
    let db = keyed(file, key);
    let tables: Vec<String> = db
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(tables.iter().any(|name| name == "openmls_group_data"));
    let mut cells = Vec::new();
    for table in tables {
        let mut statement = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let width = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..width {
                if let ValueRef::Text(bytes) | ValueRef::Blob(bytes) = row.get_ref(column).unwrap()
                {
                    cells.push(bytes.to_vec());
                }
            }
        }
    }
    cells
}

/// Every page of the file and of its write-ahead log, in the clear, one after another. Call it before anything opens the copy: SQLite would
/// move the log into the file.
pub fn pages(file: &Path, key: &str) -> Vec<u8> {
    let key = hex::decode(key).unwrap();
    let main = std::fs::read(file).unwrap();
    assert!(
        !main.is_empty() && main.len().is_multiple_of(PAGE),
        "whole pages"
    );
    assert!(
        !main.starts_with(b"SQLite format 3"),
        "the file is encrypted"
    );
    let mut clear = Vec::with_capacity(main.len());
    for (number, page) in main.chunks_exact(PAGE).enumerate() {
        clear.extend(open_page(&key, page, number == 0));
    }
    for frame in log_frames(file) {
        // The page number 1 is the one with the salt.
        let first = frame[..4] == [0, 0, 0, 1];
        clear.extend(open_page(&key, &frame[FRAME_HEADER..], first));
    }
    clear
}

/// The frames of the write-ahead log, also those of a former round that SQLite would not read any more.
pub fn log_frames(file: &Path) -> Vec<Vec<u8>> {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    let log = std::fs::read(&log).unwrap_or_default();
    let frames = log.get(LOG_HEADER..).unwrap_or_default();
    frames
        .chunks_exact(FRAME_HEADER + PAGE)
        .map(<[u8]>::to_vec)
        .collect()
}

fn open_page(key: &[u8], page: &[u8], first: bool) -> Vec<u8> {
    let (body, reserve) = page.split_at(PAGE - RESERVE);
    let mut body = body[if first { SALT } else { 0 }..].to_vec();
    // Never written to, or overwritten by `secure_delete` before it was encrypted.
    if page.iter().all(|&byte| byte == 0) {
        return body;
    }
    let iv: [u8; 16] = reserve[..16].try_into().unwrap();
    let key = UnboundCipherKey::new(&AES_256, key).unwrap();
    DecryptingKey::cbc(key)
        .unwrap()
        .decrypt(&mut body, DecryptionContext::Iv128(iv.into()))
        .unwrap();
    if first {
        // Bytes 16.. of SQLite's header: page size, format versions, reserved bytes per page.
        assert_eq!(
            (&body[..2], body[4]),
            (&[0x10, 0x00][..], RESERVE as u8),
            "the page opened"
        );
    }
    body
}

/// A value as OpenMLS's storage writes it, in the forms in which it may stand in a page.
pub fn spellings(bytes: &[u8]) -> [Vec<u8>; 3] {
    [
        bytes.to_vec(),
        cbor_numbers(bytes),
        hex::encode(bytes).into_bytes(),
    ]
}

/// The elements of a CBOR array of numbers.
fn cbor_numbers(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in bytes {
        if byte >= 24 {
            out.push(0x18);
        }
        out.push(byte);
    }
    out
}

/// Every run of 12 to 64 bytes that stands in `hay` as a CBOR byte string or as a CBOR array of numbers, whatever is around it.
pub fn byte_strings(hay: &[u8]) -> Vec<Vec<u8>> {
    (0..hay.len())
        .filter_map(|at| byte_string(&hay[at..]))
        .collect()
}

fn byte_string(hay: &[u8]) -> Option<Vec<u8>> {
    let (&head, rest) = hay.split_first()?;
    let (length, rest) = match head & 0x1f {
        short @ ..24 => (usize::from(short), rest),
        24 => rest
            .split_first()
            .map(|(&length, rest)| (usize::from(length), rest))?,
        _ => return None,
    };
    if !(12..=64).contains(&length) {
        return None;
    }
    match head >> 5 {
        2 => rest.get(..length).map(<[u8]>::to_vec),
        4 => {
            let mut rest = rest.iter();
            (0..length)
                .map(|_| match *rest.next()? {
                    byte @ ..24 => Some(byte),
                    24 => rest.next().copied(),
                    _ => None,
                })
                .collect()
        }
        _ => None,
    }
}

/// What OpenMLS stores of the only group under `data_type`.
pub fn group_data(db: &Connection, data_type: &str) -> Value {
    let bytes: Vec<u8> = db
        .query_row(
            "SELECT group_data FROM openmls_group_data WHERE data_type = ?1",
            [data_type],
            |row| row.get(0),
        )
        .unwrap();
    ciborium::from_reader(bytes.as_slice()).unwrap()
}

pub fn set_group_data(db: &Connection, data_type: &str, value: &Value) {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    let changed = db
        .execute(
            "UPDATE openmls_group_data SET group_data = ?1 WHERE data_type = ?2",
            rusqlite::params![bytes, data_type],
        )
        .unwrap();
    assert_eq!(changed, 1);
}

/// The private keys of every key package that waits for a Welcome.
pub fn key_package_secrets(db: &Connection) -> Vec<Vec<u8>> {
    let bundles: Vec<Vec<u8>> = db
        .prepare("SELECT key_package FROM openmls_key_packages")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let mut secrets = Vec::new();
    for bundle in bundles {
        let bundle: Value = ciborium::from_reader(bundle.as_slice()).unwrap();
        let private = bundle.into_map().unwrap().into_iter().filter(|(name, _)| {
            name.as_text()
                .is_some_and(|name| name.starts_with("private"))
        });
        for (_, value) in private {
            let mut bytes = Vec::new();
            ciborium::into_writer(&value, &mut bytes).unwrap();
            secrets.extend(
                byte_strings(&bytes)
                    .into_iter()
                    .filter(|bytes| bytes.len() == 32),
            );
        }
    }
    secrets
}
