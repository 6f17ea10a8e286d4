//! What was given out as a proof.

use super::*;

/// The parts of a proof that are not the same in all proofs; each stands in the whole.
pub(super) fn of_proof(proof: &Bearer) -> Vec<Wanted> {
    let parts = proof.expose().split('.').skip(1);
    parts
        .map(|part| Wanted::text("part of a proof", part))
        .collect()
}

/// The nonces that were asked about and the proofs that were given.
#[derive(Default)]
pub(super) struct Given(Mutex<Vec<(String, Bearer)>>);

/// An issuer that remembers.
pub(super) struct Recording<'a> {
    signer: &'a DevSigner,
    given: &'a Given,
}

impl Given {
    pub(super) const fn by<'a>(&'a self, signer: &'a DevSigner) -> Recording<'a> {
        Recording {
            signer,
            given: self,
        }
    }

    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let given = self.0.lock().unwrap();
        assert_eq!(given.len(), 3, "two rotations and the admin program");
        given
            .iter()
            .flat_map(|(nonce, proof)| {
                let (challenge, binding) = nonce.split_once('.').unwrap();
                of_proof(proof).into_iter().chain([
                    Wanted::text("binding of a nonce", binding),
                    Wanted::text("challenge of a nonce", challenge),
                ])
            })
            .collect()
    }
}

#[async_trait]
impl ProofSource for Recording<'_> {
    async fn prove(&self, request: &ProofRequest) -> Result<Bearer, ProofError> {
        let proof = self.signer.prove(request).await?;
        self.given
            .0
            .lock()
            .unwrap()
            .push((request.nonce.clone(), proof.clone()));
        Ok(proof)
    }
}
