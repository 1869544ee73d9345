//! Answers that come in pieces: what is there so far every now and then, and the whole at the end.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, Stream};
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinHandle};

use super::QueryError;

/// Messages that may wait for a slow client. What finds no room comes with the next message.
const WAITING: usize = 4;

/// A query whose answer comes in messages: differences, and at last the whole answer or an error. Dropping it cancels the query.
#[derive(Debug)]
pub struct Streaming<T> {
    messages: mpsc::Receiver<Result<T, QueryError>>,
    task: JoinHandle<()>,
}

impl<T: Send + 'static> Streaming<T> {
    /// Runs a query; differences come no more often than `every`.
    pub(crate) fn spawn<F>(every: Duration, query: impl FnOnce(Progress<T>) -> F) -> Self
    where
        F: Future<Output = Result<T, QueryError>> + Send + 'static,
    {
        let (sender, messages) = mpsc::channel(WAITING);
        let query = query(Progress { every, last: Mutex::new(Instant::now()), sender: sender.clone() });
        let task = tokio::spawn(async move {
            // A stream that just ended would look like a whole answer.
            let answer = AssertUnwindSafe(query).catch_unwind().await;
            let answer = answer.unwrap_or_else(|_| Err(QueryError::Worker { cause: "it panicked".to_owned() }));
            // A client that has gone needs no answer.
            _ = sender.send(answer).await;
        });
        Self { messages, task }
    }
}

impl<T> Stream for Streaming<T> {
    type Item = Result<T, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context)
    }
}

impl<T> Drop for Streaming<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a running query sends differences.
#[derive(Debug)]
pub(crate) struct Progress<T> {
    every: Duration,
    last: Mutex<Instant>,
    sender: mpsc::Sender<Result<T, QueryError>>,
}

impl<T> Progress<T> {
    /// Whether it is time for a message.
    pub(crate) fn is_due(&self) -> bool {
        self.last.lock().elapsed() >= self.every && self.sender.capacity() > 1
    }

    /// Sends a difference; says whether it was taken.
    pub(crate) fn send(&self, difference: T) -> bool {
        *self.last.lock() = Instant::now();
        self.sender.try_send(Ok(difference)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_query_that_panics_ends_with_an_error() {
        let mut messages: Streaming<u8> = Streaming::spawn(Duration::ZERO, |progress| async move {
            progress.send(1);
            panic!("on purpose");
        });
        assert!(matches!(messages.next().await, Some(Ok(1))));
        assert!(matches!(messages.next().await, Some(Err(QueryError::Worker { .. }))));
        assert!(messages.next().await.is_none());
    }
}
