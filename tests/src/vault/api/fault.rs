//! How the server misbehaves.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures::stream;

/// What goes wrong, how often, and where.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Part of the path.
    path: &'static str,
    /// How many more times.
    pub(super) times: usize,
    /// After the request was carried out, instead of before.
    pub(super) after: bool,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    Status(u16, &'static str, Option<&'static str>),
    Hang,
    /// The connection breaks in the middle of the body.
    Break,
    Garbage(&'static str),
    Huge,
    Slow(Duration),
}

impl Fault {
    fn new(path: &'static str, how: How) -> Self {
        Self {
            path,
            times: 1,
            after: false,
            how,
        }
    }

    pub fn status(path: &'static str, status: u16, body: &'static str) -> Self {
        Self::new(path, How::Status(status, body, None))
    }

    pub fn retry_after(path: &'static str, status: u16, seconds: &'static str) -> Self {
        Self::new(path, How::Status(status, r#"{"errors":[]}"#, Some(seconds)))
    }

    pub fn hang(path: &'static str) -> Self {
        Self::new(path, How::Hang)
    }

    pub fn reset(path: &'static str) -> Self {
        Self::new(path, How::Break)
    }

    pub fn garbage(path: &'static str, text: &'static str) -> Self {
        Self::new(path, How::Garbage(text))
    }

    pub fn huge(path: &'static str) -> Self {
        Self::new(path, How::Huge)
    }

    /// Answers properly, later.
    pub fn slow(path: &'static str, by: Duration) -> Self {
        Self::new(path, How::Slow(by))
    }

    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Does what was asked first.
    pub fn after_doing_it(mut self) -> Self {
        self.after = true;
        self
    }

    /// How much later the proper answer comes.
    pub(super) fn delay(&self) -> Option<Duration> {
        match self.how {
            How::Slow(by) => Some(by),
            _ => None,
        }
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        self.times > 0 && path.contains(self.path)
    }

    pub(super) async fn misbehave(&self) -> Response {
        match &self.how {
            How::Status(status, body, retry_after) => {
                let status = StatusCode::from_u16(*status).unwrap();
                let mut answer = (status, *body).into_response();
                if let Some(seconds) = retry_after {
                    answer
                        .headers_mut()
                        .insert("retry-after", seconds.parse().unwrap());
                }
                answer
            }
            How::Hang => std::future::pending().await,
            How::Break => {
                let pieces = [Ok("{\"data\":"), Err(std::io::Error::other("broken"))];
                Body::from_stream(stream::iter(pieces)).into_response()
            }
            How::Garbage(text) => (*text).into_response(),
            How::Huge => {
                let piece = "x".repeat(64 * 1024);
                let endless = stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
                Body::from_stream(endless).into_response()
            }
            How::Slow(_) => unreachable!("a slow answer is a proper one"),
        }
    }
}
