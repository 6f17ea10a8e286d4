//! Whether the emulator answers, asked as an unauthenticated stranger: only such a request is judged by the rules, and shows whether they compile.
//!
//! Written on a socket, so that the library needs no HTTP client for its tests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// One try; a request that hangs is given up and asked again.
const TIMEOUT: Duration = Duration::from_secs(5);
const PATH: &str = "/v1/projects/readiness/databases/(default)/documents/readiness/probe";

/// What one look found.
pub(super) enum Probe {
    /// It judges requests.
    Ready,
    /// Not yet.
    Silent,
    /// It runs, but will never judge a request: what it said.
    Broken(String),
}

/// Asks once.
pub(super) fn ask(port: u16) -> Probe {
    match answer(port) {
        // Without rules the document is missing; under rules it is nobody's business.
        Ok((404 | 403, _)) => Probe::Ready,
        Ok((400, body)) if body.contains("compiling rules") => Probe::Broken(body),
        Ok(_) | Err(_) => Probe::Silent,
    }
}

fn answer(port: u16) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    )?;
    let mut reader = BufReader::new(stream);
    let mut status = String::new();
    reader.read_line(&mut status)?;
    // It keeps the connection open even when asked to close it, so the length tells where the body ends.
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    let status = status.split(' ').nth(1).and_then(|it| it.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body))
}
