//! What is asked afterwards: the verifier about three secrets, and every file and page about plaintext.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use bytes::Bytes;
use keyturn_proto::{ClientId, PresentedSecret, Secret};
use keyturn_store::mac::local::LocalMacKey;
use keyturn_store::verifier::{Settings, Verified as Match, Verifier, VerifyError, Which};

use super::QuickstartError;
use super::leaks::Needles;
use super::people::{at, now};
use super::play::Rotated;
use super::report::{Narrator, Verified};
use super::setup::Layout;
use crate::cli::serve::Served;
use crate::config::ValidatedConfig;
use crate::operator;

/// Asks the verifier, over the very store and key that the relay uses, about the new, the old and a wrong secret.
pub(super) async fn judge(
    config: &ValidatedConfig,
    layout: &Layout,
    client: &ClientId,
    old: &Rotated,
    new: &Rotated,
) -> Result<Verified, QuickstartError> {
    let store = operator::open_store(config).await.map_err(at("store"))?;
    let mac = LocalMacKey::open(&[layout.mac_key()]).map_err(at("MAC key"))?;
    let verifier = Verifier::new(store, mac, Settings::default()).map_err(at("verifier"))?;
    let wrong = Secret::generate().map_err(at("verifier"))?;
    let mut answers = Vec::with_capacity(3);
    for secret in [new.secret.expose(), old.secret.expose(), wrong.expose()] {
        let presented = PresentedSecret::new(secret);
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match verifier
            .verify(client.as_str(), &presented, source, now())
            .await
        {
            Ok(matched) => answers.push(Some(matched)),
            Err(VerifyError::Refused) => answers.push(None),
            Err(error @ VerifyError::Unavailable { .. }) => return Err(at("verifier")(error)),
        }
    }
    let is = |answer: &Option<Match>, version, which| {
        *answer
            == Some(Match {
                version_id: version,
                which,
            })
    };
    Ok(Verified {
        current: is(&answers[0], new.version, Which::Current),
        previous: is(&answers[1], old.version, Which::Previous),
        wrong: answers[2].is_some(),
    })
}

pub(super) const fn word(accepted: bool) -> &'static str {
    if accepted { "accepted" } else { "refused" }
}

/// Searches every file, every page of the service and what the broker has `carried`. Returns in how many places plaintext was found.
pub(super) async fn search(
    root: &Path,
    served: &Served,
    carried: Vec<u8>,
    secrets: &[&str],
    narrator: &Narrator,
) -> Result<usize, QuickstartError> {
    let mut pages = vec![("broker", Bytes::from(carried))];
    for page in ["metrics", "readyz", "healthz", "kr/v1/challenge"] {
        let url = format!("{}/{page}", served.web_url());
        let body = async { reqwest::get(url).await?.bytes().await };
        pages.push((page, body.await.map_err(at("search"))?));
    }
    let mut leaks = 0;
    let (mut files, mut bytes) = (0, 0);
    for secret in secrets {
        let needles = Needles::of(secret);
        let searched = needles.in_files(root)?;
        (files, bytes) = (searched.files, searched.bytes);
        for path in &searched.leaks {
            narrator.line(&format!("            LEAK in {}", path.display()));
        }
        leaks += searched.leaks.len();
        for (page, _) in pages.iter().filter(|(_, body)| needles.in_bytes(body)) {
            narrator.line(&format!("            LEAK in /{page}"));
            leaks += 1;
        }
    }
    narrator.line(&format!(
        "            searched {files} files ({} KiB): store, member database, relay events, admins' homes, log; {} pages; and what the broker carried",
        bytes / 1024,
        pages.len() - 1
    ));
    Ok(leaks)
}
