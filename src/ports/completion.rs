//! The end of something that is not over when a call returns.

use crate::base::error::Error;

/// Receives the outcome of one piece of work, exactly once.
///
/// Ordering: `complete` may run on any thread, before or after the call that took the completion returns. The memory broker
/// may hold the lock of a stream meanwhile, so the receiver must neither publish nor wait. A completion that is dropped
/// completes with an error, so no caller waits for ever.
pub struct Completion<T>(Option<Receiver<T>>);

type Receiver<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;

impl<T> Completion<T> {
    /// `receive` must neither block nor publish.
    pub fn new(receive: impl FnOnce(Result<T, Error>) + Send + 'static) -> Self {
        Self(Some(Box::new(receive)))
    }

    pub fn complete(mut self, outcome: Result<T, Error>) {
        if let Some(receive) = self.0.take() {
            receive(outcome);
        }
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if let Some(receive) = self.0.take() {
            receive(Err(Error::Storage(
                "the work ended without an outcome".to_owned(),
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counted() -> (Arc<AtomicUsize>, Arc<AtomicUsize>, Completion<u32>) {
        let (good, bad) = (Arc::default(), Arc::default());
        let (on_good, on_bad): (Arc<AtomicUsize>, Arc<AtomicUsize>) =
            (Arc::clone(&good), Arc::clone(&bad));
        let completion = Completion::new(move |outcome: Result<u32, Error>| {
            let counter = if outcome.is_ok() { &on_good } else { &on_bad };
            counter.fetch_add(1, Ordering::Relaxed);
        });
        (good, bad, completion)
    }

    #[test]
    fn a_completion_completes_once_and_a_dropped_one_with_an_error() {
        let (good, bad, completion) = counted();
        completion.complete(Ok(1));
        assert_eq!(
            (good.load(Ordering::Relaxed), bad.load(Ordering::Relaxed)),
            (1, 0)
        );
        let (good, bad, completion) = counted();
        drop(completion);
        assert_eq!(
            (good.load(Ordering::Relaxed), bad.load(Ordering::Relaxed)),
            (0, 1)
        );
    }
}
