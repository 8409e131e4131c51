//! Rust futures as asyncio futures, on the runtime of the server that they belong to.

use crate::host::server::{Waiting, WaitingGuard};
use pyo3::prelude::*;
use pyo3_async_runtimes::TaskLocals;
use pyo3_async_runtimes::generic::{self, ContextExt, JoinError, Runtime};
use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// An asyncio future of the running loop, done when the server has ended.
pub fn ended<'py>(py: Python<'py>, waiting: &Waiting) -> PyResult<Bound<'py, PyAny>> {
    let mut ended = waiting.ended.clone();
    WAITING.with_borrow_mut(|current| *current = Some(waiting.clone()));
    let future = generic::future_into_py::<ServerRuntime, _, ()>(py, async move {
        // an error means that the sender is gone, and then it has ended too
        let _ = ended.wait_for(|ended| *ended).await;
        Ok(())
    });
    WAITING.with_borrow_mut(|current| *current = None);
    future
}

thread_local! {
    /// Which server's runtime the next future goes to: the generic bridge spawns without saying where.
    static WAITING: RefCell<Option<Waiting>> = const { RefCell::new(None) };
}

struct ServerRuntime;

impl ServerRuntime {
    /// The server that is waited for, also from within its runtime.
    fn current() -> Option<Waiting> {
        WAITING.with_borrow(Clone::clone)
    }
}

/// A task's end. A runtime that is gone ends it as one that was cancelled.
struct Task(Option<tokio::task::JoinHandle<()>>);

#[derive(Debug)]
struct TaskError(Option<tokio::task::JoinError>);

impl Future for Task {
    type Output = Result<(), TaskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Some(handle) => Pin::new(handle)
                .poll(context)
                .map_err(|error| TaskError(Some(error))),
            None => Poll::Ready(Err(TaskError(None))),
        }
    }
}

impl JoinError for TaskError {
    fn is_panic(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(tokio::task::JoinError::is_panic)
    }

    fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        match self.0 {
            Some(error) => error.into_panic(),
            None => Box::new("the task was cancelled"),
        }
    }
}

/// Carries the server along, so that what a task spawns goes to the same runtime.
async fn within<F: Future<Output = ()>>(waiting: Waiting, guard: WaitingGuard, future: F) {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        let outer = WAITING.with_borrow_mut(|current| current.replace(waiting.clone()));
        let poll = future.as_mut().poll(context);
        WAITING.with_borrow_mut(|current| *current = outer);
        poll
    })
    .await;
    drop(guard);
}

impl Runtime for ServerRuntime {
    type JoinError = TaskError;
    type JoinHandle = Task;

    fn spawn<F: Future<Output = ()> + Send + 'static>(future: F) -> Task {
        let Some(waiting) = Self::current() else {
            return Task(None);
        };
        let guard = waiting.guard();
        let handle = waiting.handle.clone();
        Task(Some(handle.spawn(within(waiting, guard, future))))
    }

    fn spawn_blocking<F: FnOnce() + Send + 'static>(function: F) -> Task {
        let Some(waiting) = Self::current() else {
            return Task(None);
        };
        let guard = waiting.guard();
        Task(Some(waiting.handle.spawn_blocking(move || {
            function();
            drop(guard);
        })))
    }
}

impl ContextExt for ServerRuntime {
    fn scope<F, R>(_locals: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        Box::pin(future)
    }

    fn get_task_locals() -> Option<TaskLocals> {
        None
    }
}
