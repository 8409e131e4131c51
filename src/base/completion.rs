//! The end of work that is not over when a call returns.

use crate::base::error::Error;

/// The error for the receiver of a completion that is dropped: the work has ended without an outcome.
pub trait Abandoned {
    fn abandoned() -> Self;
}

impl Abandoned for Error {
    fn abandoned() -> Self {
        Error::Storage("the work ended without an outcome".to_owned())
    }
}

/// Receives the outcome of one piece of work, exactly once.
///
/// Ordering: `complete` may run on any thread, before or after the call that took the completion returns. The caller of
/// `complete` holds no lock, so the receiver may take locks and make calls; it must not block. A completion that is
/// dropped completes with `Abandoned`, so no caller waits for ever.
pub struct Completion<T, E: Abandoned = Error>(Option<Receiver<T, E>>);

type Receiver<T, E> = Box<dyn FnOnce(Result<T, E>) + Send>;

impl<T, E: Abandoned> Completion<T, E> {
    /// `receive` must not block.
    pub fn new(receive: impl FnOnce(Result<T, E>) + Send + 'static) -> Self {
        Self(Some(Box::new(receive)))
    }

    pub fn complete(mut self, outcome: Result<T, E>) {
        if let Some(receive) = self.0.take() {
            receive(outcome);
        }
    }
}

impl<T, E: Abandoned> Drop for Completion<T, E> {
    fn drop(&mut self) {
        if let Some(receive) = self.0.take() {
            receive(Err(E::abandoned()));
        }
    }
}

/// Creates the completion of a call. A call invokes this at most once, and only when the call ends after it has returned:
/// a call that ends at once allocates nothing.
pub type Later<'a, T, E = Error> = dyn FnMut() -> Completion<T, E> + 'a;

/// Where a call stands when it returns.
#[derive(Debug)]
pub enum Progress<T, E = Error> {
    /// The call has ended.
    Ended(Result<T, E>),
    /// The completion receives the outcome. The result, if it is known already and only has to be saved.
    Begun(Option<T>),
}
