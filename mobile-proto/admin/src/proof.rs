//! Where a `jwt_proof` comes from.
//!
//! The issuer is somebody else: the mobile app's attestation, a company's sign-in, the development issuer of `keyturn quickstart`. What the
//! admin app brings is the [`ProofRequest`]; what it gets back is one compact JWS. A proof never reaches an argument list, a log or an error.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use keyturn_proto::encoding::from_b64url;
use keyturn_proto::proof::{ProofClaims, ProofRequest};
use keyturn_proto::request::{Bearer, ServiceRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Neither a command nor a file was named.
    #[error(
        "no proof source: pass --proof-command or --proof-file, or set proof_command in the configuration"
    )]
    NotConfigured,
    /// The command could not be started or spoken to.
    #[error("proof command: {0}")]
    Command(std::io::Error),
    /// The command ended with a failure; what it printed to stderr went to the terminal.
    #[error("the proof command failed ({0})")]
    Failed(std::process::ExitStatus),
    /// The command took too long.
    #[error("the proof command did not answer within {0:?}")]
    Timeout(Duration),
    /// The file could not be read.
    #[error("proof file {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What came is no compact JWS.
    #[error("the proof is not a compact JWS of at most 8192 bytes")]
    Shape,
    /// It is a JWS, for something else: the relay would burn the nonce and refuse.
    #[error("the proof does not answer this request: its `{0}` claim differs")]
    Mismatch(&'static str),
    /// A source outside this crate failed.
    #[error("proof source: {0}")]
    Other(String),
}

/// Signs proofs, or knows who does.
#[async_trait]
pub trait ProofSource: Send + Sync {
    /// A compact JWS whose claims answer `request`.
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError>;
}

/// Runs a program: the [`ProofRequest`] as one JSON object on its stdin, the JWS expected on its stdout.
pub struct CommandProof {
    /// Split at white space, no shell: the program and its arguments.
    pub command: Vec<String>,
    /// How long it may take; a person may have to confirm on a phone.
    pub timeout: Duration,
}

#[async_trait]
impl ProofSource for CommandProof {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or(ProofError::NotConfigured)?;
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .map_err(ProofError::Command)?;
        let input =
            serde_json::to_vec(request).map_err(|error| ProofError::Other(error.to_string()))?;
        let exchange = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A command that needs no input may have closed it: its answer decides.
                match stdin.write_all(&input).await {
                    Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                        return Err(ProofError::Command(error));
                    }
                    _ => {}
                }
            }
            let mut output = Zeroizing::new(Vec::with_capacity(ServiceRequest::MAX_PROOF + 64));
            if let Some(stdout) = child.stdout.take() {
                stdout
                    .take(ServiceRequest::MAX_PROOF as u64 + 64)
                    .read_to_end(&mut output)
                    .await
                    .map_err(ProofError::Command)?;
            }
            let status = child.wait().await.map_err(ProofError::Command)?;
            if !status.success() {
                return Err(ProofError::Failed(status));
            }
            let proof = compact_jws(&output)?;
            answers(&proof, request)?;
            Ok(proof)
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| ProofError::Timeout(self.timeout))?
    }
}

/// Hands the request over in a file and waits for the proof in another: for issuers that are reached by hand or over an air gap.
///
/// The [`ProofRequest`] is written to `PATH.request`; the proof is taken from `PATH` as soon as it stands there and answers this very
/// request. An older file is therefore never mistaken for it. Both files are removed afterwards.
pub struct FileProof {
    /// Where the proof will stand.
    pub path: PathBuf,
    /// How long to wait for it.
    pub timeout: Duration,
}

/// Between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl FileProof {
    /// Where the request is written.
    #[must_use]
    pub fn request_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".request");
        name.into()
    }

    async fn look(&self) -> Result<Option<Zeroizing<Vec<u8>>>, ProofError> {
        let file = match tokio::fs::File::open(&self.path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed(source)),
        };
        let mut text = Zeroizing::new(Vec::with_capacity(ServiceRequest::MAX_PROOF + 64));
        file.take(ServiceRequest::MAX_PROOF as u64 + 64)
            .read_to_end(&mut text)
            .await
            .map_err(|source| self.failed(source))?;
        Ok(Some(text))
    }

    fn failed(&self, source: std::io::Error) -> ProofError {
        ProofError::File {
            path: self.path.clone(),
            source,
        }
    }
}

#[async_trait]
impl ProofSource for FileProof {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        let json = serde_json::to_vec_pretty(request)
            .map_err(|error| ProofError::Other(error.to_string()))?;
        // Written beside and renamed, so that a watcher never reads half a request.
        let mut partial = self.request_path().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        tokio::fs::write(&partial, json)
            .await
            .map_err(|source| self.failed(source))?;
        tokio::fs::rename(&partial, self.request_path())
            .await
            .map_err(|source| self.failed(source))?;

        let wait = async {
            loop {
                if let Some(text) = self.look().await? {
                    // A half-written file has no good shape yet, and an old one another nonce: both mean "not yet".
                    if let Ok(proof) = compact_jws(&text)
                        && answers(&proof, request).is_ok()
                    {
                        return Ok(proof);
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let answered = tokio::time::timeout(self.timeout, wait).await;
        // The request is spent either way; a proof that stays behind answers nothing any more.
        let _ = tokio::fs::remove_file(self.request_path()).await;
        match answered {
            Err(_elapsed) => Err(ProofError::Timeout(self.timeout)),
            Ok(proof) => {
                let _ = tokio::fs::remove_file(&self.path).await;
                proof
            }
        }
    }
}

/// Three non-empty base64url parts (RFC 7515 §7.1). Whether it proves anything is the relay's to judge.
fn compact_jws(bytes: &[u8]) -> Result<Bearer, ProofError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ProofError::Shape)?
        .trim();
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if text.len() <= ServiceRequest::MAX_PROOF
        && text.split('.').count() == 3
        && text.split('.').all(is_part)
    {
        Ok(Bearer::new(text))
    } else {
        Err(ProofError::Shape)
    }
}

/// Whether the claims, unverified, are the ones asked for. Saves a nonce and a round trip, and names what the issuer got wrong.
fn answers(proof: &Bearer, request: &ProofRequest) -> Result<(), ProofError> {
    let payload = proof.expose().split('.').nth(1).ok_or(ProofError::Shape)?;
    let payload = from_b64url("jwt_proof", payload).map_err(|_| ProofError::Shape)?;
    let claims: ProofClaims = serde_json::from_slice(&payload).map_err(|_| ProofError::Shape)?;
    let ProofRequest {
        nonce,
        npub,
        mls_group,
        aud,
        ..
    } = request;
    for (same, claim) in [
        (claims.nonce == *nonce, "nonce"),
        (claims.npub == *npub, "npub"),
        (claims.mls_group == *mls_group, "mls_group"),
        (claims.aud.contains(aud), "aud"),
    ] {
        if !same {
            return Err(ProofError::Mismatch(claim));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use keyturn_proto::Action;
    use keyturn_proto::encoding::b64url;

    use super::*;

    fn request() -> ProofRequest {
        ProofRequest {
            nonce: "challenge.binding".to_owned(),
            npub: keyturn_proto::Npub::from_bytes([1; 32]),
            mls_group: "0a".parse().unwrap(),
            aud: "rust-nostr-relay".to_owned(),
            action: Action::Rotation,
            client_id: "c".parse().unwrap(),
            action_id: "01JM8VEZAMG2DK6T4S9N7TT1C8".parse().unwrap(),
            params: keyturn_proto::Params::default(),
        }
    }

    fn jws(nonce: &str) -> String {
        let ProofRequest {
            npub,
            mls_group,
            aud,
            ..
        } = request();
        let claims = serde_json::json!({
            "aud": aud, "iat": 1, "exp": 2, "amr": ["totp"], "npub": npub, "mls_group": mls_group, "nonce": nonce,
        });
        format!("e30.{}.c2ln", b64url(claims.to_string().as_bytes()))
    }

    fn shell(script: &str, timeout: Duration) -> CommandProof {
        CommandProof {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout,
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_command_reads_the_request_and_prints_the_proof() {
        // It answers only if the nonce really arrived on its stdin.
        let script = format!(
            "grep -q '\"nonce\":\"challenge.binding\"' && echo {}",
            jws("challenge.binding")
        );
        let proof = shell(&script, LONG).prove(&request()).await.unwrap();
        assert_eq!(proof.expose(), jws("challenge.binding"));
    }

    #[tokio::test]
    async fn a_command_that_answers_wrongly_is_told_apart() {
        let mismatch = shell(&format!("echo {}", jws("other")), LONG);
        assert!(matches!(
            mismatch.prove(&request()).await,
            Err(ProofError::Mismatch("nonce"))
        ));
        assert!(matches!(
            shell("echo nonsense", LONG).prove(&request()).await,
            Err(ProofError::Shape)
        ));
        assert!(matches!(
            shell("exit 3", LONG).prove(&request()).await,
            Err(ProofError::Failed(_))
        ));
        assert!(matches!(
            shell("sleep 60", Duration::from_millis(50))
                .prove(&request())
                .await,
            Err(ProofError::Timeout(_))
        ));
        let missing = CommandProof {
            command: vec!["/nonexistent/issuer".to_owned()],
            timeout: LONG,
        };
        assert!(matches!(
            missing.prove(&request()).await,
            Err(ProofError::Command(_))
        ));
    }

    #[tokio::test]
    async fn a_file_is_taken_only_when_it_answers_this_request() {
        let dir = tempfile::tempdir().unwrap();
        let source = FileProof {
            path: dir.path().join("proof.jwt"),
            timeout: LONG,
        };
        // A proof of yesterday lies there already.
        std::fs::write(&source.path, jws("yesterday")).unwrap();
        let request = request();
        let issuer = async {
            while !source.request_path().exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let text = std::fs::read_to_string(source.request_path()).unwrap();
            let asked: ProofRequest = serde_json::from_str(&text).unwrap();
            std::fs::write(&source.path, jws(&asked.nonce)).unwrap();
        };
        let (proof, ()) = tokio::join!(source.prove(&request), issuer);
        assert_eq!(proof.unwrap().expose(), jws("challenge.binding"));
        assert!(!source.path.exists() && !source.request_path().exists());
    }

    #[tokio::test]
    async fn a_file_that_never_comes_ends_in_a_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let source = FileProof {
            path: dir.path().join("proof.jwt"),
            timeout: Duration::from_millis(50),
        };
        assert!(matches!(
            source.prove(&request()).await,
            Err(ProofError::Timeout(_))
        ));
        assert!(!source.request_path().exists());
    }
}
