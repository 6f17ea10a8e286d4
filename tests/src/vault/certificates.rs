//! A CA of one's own and a server certificate for 127.0.0.1, made by the `openssl` command for one test.

use std::path::Path;
use std::process::Command;

/// A folder with `ca.crt`, `server.crt` and `server.key`.
pub fn certificates() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(
        at.join("server.ext"),
        "subjectAltName = IP:127.0.0.1, DNS:localhost\nbasicConstraints = critical, CA:false\nextendedKeyUsage = serverAuth\n",
    )
    .unwrap();
    let key = "ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        at,
        &format!(
            "req -x509 -newkey {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=keyturn-test-ca"
        ),
    );
    openssl(
        at,
        &format!("req -newkey {key} -keyout server.key -out server.csr -subj /CN=localhost"),
    );
    openssl(
        at,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.crt",
    );
    folder
}

/// A client's certificate that the CA in `at` signs, with this alternative name such as `DNS:broker.example.org`; certificate and key in one PEM.
pub fn client_certificate(at: &Path, alternative: &str) -> Vec<u8> {
    std::fs::write(
        at.join("client.ext"),
        format!(
            "subjectAltName = {alternative}\nbasicConstraints = critical, CA:false\nextendedKeyUsage = clientAuth\n"
        ),
    )
    .unwrap();
    openssl(
        at,
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout client.key -out client.csr -subj /CN=client",
    );
    openssl(
        at,
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile client.ext -out client.crt",
    );
    let mut pem = std::fs::read(at.join("client.crt")).unwrap();
    pem.extend(std::fs::read(at.join("client.key")).unwrap());
    pem
}

fn openssl(at: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(at)
        .output()
        .unwrap_or_else(|error| {
            panic!("openssl: {error}; install it with: apt-get install openssl")
        });
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
