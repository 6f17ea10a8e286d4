//! Issuing: the workers behind the queue.
//!
//! Order: the store knows that the issuer is called → the issuer → the store knows what it made → the device. A secret_id that was made and could not be
//! recorded is destroyed at once; if that fails as well, the recorded intent leads to it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use keyturn_proto::device::{DeviceError, DeviceId, DeviceNonce, proof};
use keyturn_store::devices::{Answer, Change, DeviceDoc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::flow::{Devices, SOON};
use super::issuer::{Accessor, IssueRequest, Issued, IssuerError, NonceHash, RoleName};
use super::outgoing;
use super::queue::Job;
use crate::crash;
use crate::metrics as names;

/// Before a task that has panicked is begun again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Runs `task` to its end, from the beginning after each panic: what it was at is left to the deadlines in the store, and everybody else is served on.
async fn whatever_panics<F, Fut>(part: &'static str, stopping: CancellationToken, mut task: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()>,
{
    while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
        metrics::counter!(names::PANICS, "part" => "devices").increment(1);
        tracing::error!(
            part,
            "a task of the device flow panicked and is begun again"
        );
        tokio::select! {
            () = tokio::time::sleep(AFTER_PANIC) => {}
            () = stopping.cancelled() => {}
        }
    }
}

impl Devices {
    /// Recovers, then works until `stopping`. What is under way is finished; what waits is left to the next start.
    pub async fn run(self: Arc<Self>, stopping: CancellationToken) {
        self.recover().await;
        let mut tasks = JoinSet::new();
        for _ in 0..self.settings().concurrency {
            let devices = Arc::clone(&self);
            let work = move || Arc::clone(&devices).work();
            tasks.spawn(whatever_panics("issue", stopping.clone(), work));
        }
        let (devices, stop) = (Arc::clone(&self), stopping.clone());
        let upkeep = move || Arc::clone(&devices).upkeep(stop.clone());
        tasks.spawn(whatever_panics("upkeep", stopping.clone(), upkeep));
        let (devices, stop) = (Arc::clone(&self), stopping.clone());
        let refusals = move || {
            let (devices, stop) = (Arc::clone(&devices), stop.clone());
            async move { devices.write_refusals(stop).await }
        };
        tasks.spawn(whatever_panics("refusals", stopping.clone(), refusals));
        stopping.cancelled().await;
        self.queue.close();
        while tasks.join_next().await.is_some() {}
        self.write_last_refusals().await;
    }

    async fn work(self: Arc<Self>) {
        while let Some(job) = self.queue.pop().await {
            self.issue(job).await;
        }
    }

    /// Carries out one job.
    async fn issue(self: &Arc<Self>, job: Job) {
        let Job {
            device,
            nonce,
            attempt,
            arrived,
        } = job;
        let step = self.settings().step;
        let doc = match self.change(&device, Change::Start { attempt, step }).await {
            Ok(Answer::Done(doc)) => doc,
            // Superseded, interrupted or denied while it waited: whoever did that has told the device, or does when its time is over.
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%device, %error, "a waiting request could not be begun");
                self.tell(&device, &nonce, DeviceError::Unavailable, SOON);
                return;
            }
        };
        let role = doc.outstanding.as_ref().map(|issue| issue.role.as_str());
        let Some(role) = role.and_then(|role| role.parse::<RoleName>().ok()) else {
            self.issue_failed(&doc, attempt, "role_invalid", false)
                .await;
            self.tell(&device, &nonce, DeviceError::Unavailable, SOON);
            return;
        };
        crash::point(crash::Point::BeforeIssue).await;
        if !self.has_time(&doc) {
            tracing::warn!(%device, %nonce, "this relay was held up; it issues nothing for a request that may have been given up");
            self.issue_failed(&doc, attempt, "too_late", false).await;
            self.tell(&device, &nonce, DeviceError::Unavailable, SOON);
            return;
        }
        let began = std::time::Instant::now();
        let made = self
            .call_issuer(&doc, &role, &NonceHash::of(nonce.as_str()))
            .await;
        metrics::histogram!(names::DEVICE_ISSUE_SECONDS).record(began.elapsed().as_secs_f64());
        crash::point(crash::Point::AfterIssue).await;
        match made {
            Ok(issued) => self.issued(&doc, &role, attempt, issued, arrived).await,
            Err(error) => {
                tracing::warn!(%device, %nonce, reason = error.reason().word(), "no secret_id was issued");
                let (why, in_doubt) = (error.reason().word(), error.in_doubt());
                self.issue_failed(&doc, attempt, why, in_doubt).await;
                let wait = error.retry_after();
                self.tell(&device, &nonce, DeviceError::Unavailable, wait);
            }
        }
    }

    /// Whether a call to the issuer that begins now ends before others may take the intent for abandoned. It does not when the process was stopped meanwhile.
    fn has_time(&self, doc: &DeviceDoc) -> bool {
        let ends = self.now().plus(self.settings().issue_timeout);
        doc.outstanding
            .as_ref()
            .is_some_and(|issue| ends <= issue.deadline_at)
    }

    async fn call_issuer(
        &self,
        doc: &DeviceDoc,
        role: &RoleName,
        nonce: &NonceHash,
    ) -> Result<Issued, IssuerError> {
        let settings = self.settings();
        let request = IssueRequest {
            role,
            device: doc.device_id.as_str(),
            nonce,
            ttl: settings.secret_id_ttl,
            num_uses: settings.secret_id_uses,
            cidrs: &settings.cidrs,
            wrap_ttl: settings.wrap_ttl,
        };
        match tokio::time::timeout(settings.issue_timeout, self.parts.issuer.issue(request)).await {
            Ok(made) => made,
            Err(_) => Err(IssuerError::InDoubt {
                why: super::issuer::Reason::Timeout,
                after: SOON,
            }),
        }
    }

    async fn issue_failed(&self, doc: &DeviceDoc, attempt: u64, why: &str, in_doubt: bool) {
        metrics::counter!(names::DEVICE_ISSUES, "result" => "failed").increment(1);
        let change = Change::IssueFailed {
            attempt,
            why: why.to_owned(),
            in_doubt,
        };
        // If this cannot be stored either, the intent's deadline leads to the same end.
        if let Err(error) = self.change(&doc.device_id, change).await {
            tracing::warn!(device = %doc.device_id, %error, "a failed issue could not be recorded");
        }
        if in_doubt {
            self.due.notify_one();
        }
    }

    async fn issued(
        self: &Arc<Self>,
        doc: &DeviceDoc,
        role: &RoleName,
        attempt: u64,
        issued: Issued,
        arrived: std::time::Instant,
    ) {
        let device = &doc.device_id;
        let Some(nonce) = doc.outstanding.as_ref().map(|issue| issue.nonce.clone()) else {
            return;
        };
        let expiry = self.settings().answer_expiry;
        let message = match outgoing::command(device, &doc.options, &nonce, &issued, expiry) {
            Ok(message) => message,
            Err(error) => {
                tracing::error!(%device, %error, "what was issued cannot be sent");
                self.destroy_unrecorded(role, &issued.accessor).await;
                self.issue_failed(doc, attempt, "not_sendable", false).await;
                self.tell(device, &nonce, DeviceError::Unavailable, SOON);
                return;
            }
        };
        let change = Change::Issued {
            attempt,
            role: role.as_str().to_owned(),
            accessor: issued.accessor.as_str().to_owned(),
            expected_proof: proof::expected(issued.credential.text().expose(), &nonce),
            expires_at: self.now().plus(issued.ttl),
            confirm: self.settings().confirm,
        };
        // A repeat is the answer to our own repetition of a write whose outcome was unknown.
        match self.change(device, change).await {
            Ok(Answer::Done(_) | Answer::Repeat) => {}
            Ok(Answer::Superseded(doc)) => {
                metrics::counter!(names::DEVICE_ISSUES, "result" => "superseded").increment(1);
                self.tend_soon(&doc);
                return;
            }
            Ok(_) => {
                self.destroy_unrecorded(role, &issued.accessor).await;
                return;
            }
            Err(error) => {
                tracing::warn!(%device, %nonce, accessor = %issued.accessor, %error, "an issued secret_id could not be recorded");
                self.destroy_unrecorded(role, &issued.accessor).await;
                self.tell(device, &nonce, DeviceError::Unavailable, SOON);
                return;
            }
        }
        self.send(message, &nonce, attempt, &issued.accessor, arrived)
            .await;
    }

    /// Hands what was issued and recorded to the connection.
    pub(super) async fn send(
        self: &Arc<Self>,
        message: outgoing::Outgoing,
        nonce: &DeviceNonce,
        attempt: u64,
        accessor: &Accessor,
        arrived: std::time::Instant,
    ) {
        let device = message.device.clone();
        crash::point(crash::Point::AfterIssueRecorded).await;
        let word = match self.parts.outlet.send(message).await {
            Ok(()) => {
                // After it has been handed over: a log takes its time.
                tracing::info!(%device, %nonce, %accessor, "issued a secret_id");
                "issued"
            }
            Err(error) => {
                tracing::warn!(%device, %nonce, %error, "an issued secret_id could not be sent; the device has to ask again");
                self.not_sent(&device, nonce, attempt).await;
                "not_sent"
            }
        };
        metrics::counter!(names::DEVICE_ISSUES, "result" => word).increment(1);
        metrics::histogram!(names::DEVICE_ANSWER_SECONDS).record(arrived.elapsed().as_secs_f64());
    }

    /// Nobody will ever report on what nobody has got: it is destroyed, and the device is asked to come again, if that can be said to it.
    pub(super) async fn not_sent(
        self: &Arc<Self>,
        device: &DeviceId,
        nonce: &DeviceNonce,
        attempt: u64,
    ) {
        match self.change(device, Change::NotSent { attempt }).await {
            Ok(Answer::Done(doc)) => {
                self.tend_soon(&doc);
                self.tell(device, nonce, DeviceError::Unavailable, SOON);
            }
            // Superseded or denied meanwhile.
            Ok(_) => {}
            // It is left to the time in which the device should have reported.
            Err(error) => {
                tracing::warn!(%device, %nonce, %error, "it could not be recorded that nothing was sent");
            }
        }
    }

    /// Destroys what the store does not know. If it fails, the recorded intent leads to it.
    async fn destroy_unrecorded(&self, role: &RoleName, accessor: &Accessor) {
        if let Err(error) = self.parts.issuer.destroy(role, accessor).await {
            tracing::warn!(%accessor, reason = error.reason().word(), "an unrecorded secret_id could not be destroyed yet");
        }
    }
}
