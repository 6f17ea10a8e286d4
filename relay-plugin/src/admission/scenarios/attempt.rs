//! One request as somebody might send it: what is asked, and what is wrong with it.

use keyturn_proto::canonical::request_binding;
use keyturn_proto::nonce;
use keyturn_proto::request::PROFILE;
use keyturn_proto::{Action, ClientId, MlsGroupId, Npub, Params, RotationId, UnixMs};
use serde_json::{Map, Value, json};

use super::issuer::{Forgery, Signer, TestIssuer};
use crate::admission::totp_seed::{STEP_SECS, Seed};

/// Who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// An enrolled admin of the client, through its group.
    Admin,
    /// In the group, not enrolled.
    Stranger,
    /// In the group under an enrolled npub, with a leaf key that was never proven for it.
    UnprovenLeaf,
    /// Enrolled and proven, through a group that is not the client's.
    OtherGroup,
    /// In the client's group, enrolled for other clients only.
    OutOfScope,
}

/// Where the proof's nonce comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nonce {
    /// A fresh challenge, bound to this request.
    Fresh,
    /// The challenge that the attempt before used, bound to this request.
    ChallengeOfThePrevious,
    /// A fresh challenge, bound to the same request by another leaf.
    OtherLeaf,
    /// A fresh challenge, bound to another action of the same id.
    OtherAction,
    /// A challenge nobody issued, rightly bound.
    NeverIssued,
    /// No dot in it.
    Malformed,
}

/// The TOTP code that comes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// None.
    Absent,
    /// The code of the step that lies `0` steps from now.
    AtStep(i64),
    /// The code that the attempt before used.
    OfThePrevious,
    /// One that no step near now has.
    Wrong,
}

/// See the module.
#[derive(Clone)]
pub struct Attempt {
    /// Who sends it.
    pub sender: Sender,
    /// For which client; the carriage's own when absent.
    pub client: Option<&'static str>,
    /// What for.
    pub action: Action,
    /// Same id as the attempt before, instead of a fresh one.
    pub same_id: bool,
    /// With which parameters.
    pub params: Params,
    /// Which key signs the proof.
    pub signer: Signer,
    /// What is wrong with its header or signature.
    pub forgery: Forgery,
    /// What is changed about its claims before signing.
    pub claims: fn(&mut Map<String, Value>, UnixMs),
    /// Where its nonce comes from.
    pub nonce: Nonce,
    /// The code.
    pub code: Code,
    /// What is changed about the finished text.
    pub text: fn(String) -> String,
}

impl Attempt {
    /// A request that is admitted.
    #[must_use]
    pub fn good() -> Self {
        Self {
            sender: Sender::Admin,
            client: None,
            action: Action::Rotation,
            same_id: false,
            params: Params {
                rotation_reason: "scenario".to_owned(),
                ..Params::default()
            },
            signer: Signer::Ed,
            forgery: Forgery::Genuine,
            claims: |_, _| {},
            nonce: Nonce::Fresh,
            code: Code::Absent,
            text: |text| text,
        }
    }

    /// The JSON to send.
    ///
    /// # Panics
    /// When the facts do not suffice, such as a code without a seed.
    #[must_use]
    pub fn compose(&self, issuer: &TestIssuer, facts: &Facts<'_>, memory: &mut Memory) -> String {
        let client: ClientId = self
            .client
            .map_or_else(|| facts.client.clone(), |id| id.parse().unwrap());
        let action_id = match &memory.action_id {
            Some(id) if self.same_id => id.clone(),
            _ => RotationId::generate(facts.now).unwrap(),
        };
        let nonce = self.nonce(facts, memory, &client, &action_id);
        let mut claims = Map::new();
        let now = facts.now.as_secs();
        for (name, value) in [
            ("iss", json!("test-issuer")),
            ("aud", json!("rust-nostr-relay")),
            ("iat", json!(now)),
            ("nbf", json!(now)),
            ("exp", json!(now + 120)),
            ("amr", json!(["app_attest", "totp"])),
            ("npub", json!(facts.npub.to_string())),
            ("mls_group", json!(facts.mls_group_id.to_string())),
            ("nonce", json!(nonce)),
        ] {
            claims.insert(name.to_owned(), value);
        }
        (self.claims)(&mut claims, facts.now);
        let mut request = json!({
            "action_type": self.action.as_str(),
            "action_id": action_id.as_str(),
            "client_id": client.as_str(),
            "profile": PROFILE,
            "params": self.params,
            "jwt_proof": issuer.token(&Value::Object(claims), self.signer, self.forgery),
        });
        if let Some(code) = self.code(facts, memory) {
            request["totp"] = json!(code);
            memory.code = Some(code);
        }
        memory.action_id = Some(action_id);
        (self.text)(request.to_string())
    }

    fn nonce(
        &self,
        facts: &Facts<'_>,
        memory: &mut Memory,
        client: &ClientId,
        action_id: &RotationId,
    ) -> String {
        let other_leaf = [0x5a; 32];
        let leaf = match self.nonce {
            Nonce::OtherLeaf => &other_leaf,
            _ => facts.leaf_signature_key,
        };
        let action = match self.nonce {
            Nonce::OtherAction => Action::Revoke,
            _ => self.action,
        };
        let binding = request_binding(
            action,
            client,
            action_id,
            &self.params,
            facts.mls_group_id,
            leaf,
        );
        let challenge = match self.nonce {
            Nonce::ChallengeOfThePrevious => memory.challenge.clone().unwrap(),
            Nonce::NeverIssued => "A".repeat(facts.challenge.len()),
            _ => facts.challenge.to_owned(),
        };
        memory.challenge = Some(challenge.clone());
        match self.nonce {
            Nonce::Malformed => challenge,
            _ => nonce::compose(&challenge, &binding),
        }
    }

    fn code(&self, facts: &Facts<'_>, memory: &Memory) -> Option<String> {
        let here = facts.now.as_secs() / STEP_SECS;
        let seed = || facts.seed.expect("a sender with a TOTP seed");
        match self.code {
            Code::Absent => None,
            Code::OfThePrevious => memory.code.clone(),
            Code::AtStep(offset) => {
                Some(seed().code(here.saturating_add_signed(offset)).to_string())
            }
            Code::Wrong => {
                let near: Vec<_> = (here - 2..=here + 2)
                    .map(|step| seed().code(step))
                    .collect();
                let wrong = ["918273", "192837", "564738", "483920", "271828", "314159"];
                wrong
                    .iter()
                    .find(|code| !near.iter().any(|n| n.as_str() == **code))
                    .map(|code| (*code).to_owned())
            }
        }
    }
}

/// What the carriage's world supplies for one attempt.
pub struct Facts<'a> {
    /// The client that is meant when the attempt names none.
    pub client: &'a ClientId,
    /// The sender.
    pub npub: Npub,
    /// The sender's leaf key in the group it sends through.
    pub leaf_signature_key: &'a [u8],
    /// That group.
    pub mls_group_id: &'a MlsGroupId,
    /// A challenge just issued.
    pub challenge: &'a str,
    /// The sender's TOTP seed, if enrolled with one.
    pub seed: Option<&'a Seed>,
    /// Now.
    pub now: UnixMs,
}

/// What one attempt of a scenario leaves to the next.
#[derive(Default)]
pub struct Memory {
    action_id: Option<RotationId>,
    challenge: Option<String>,
    code: Option<String>,
}
