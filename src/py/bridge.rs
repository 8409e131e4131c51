//! The bridge from Rust to Python awaitables: the end of an operation as an asyncio future, by pyo3-async-runtimes.
//!
//! Each event loop runs the tasks that await operations on it, so the bridge needs no thread and no runtime. The thread that
//! ends an operation (of the store, or of the server) never takes the interpreter lock: it wakes tasks. A task that is woken
//! waits in the queue of its event loop, and the loop is told by one byte on a socket, whatever the number of tasks.

use super::errors;
use super::wake_socket::WakeSocket;
use crate::base::fork;
use crate::base::sync::{Mutex, Rank};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3_async_runtimes::TaskLocals;
use pyo3_async_runtimes::generic::{self, ContextExt, JoinError, Runtime};
use std::any::Any;
use std::cell::RefCell;
use std::future::{Future, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

/// The tasks of one event loop, which watches `fileno` and calls `run_woken` when the socket is readable.
///
/// `OSError` where there are no such sockets.
#[pyclass(frozen, module = "tantor._tantor")]
pub struct LoopTasks(Arc<Queue>);

#[pymethods]
impl LoopTasks {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self(Arc::new(Queue {
            woken: Mutex::default(),
            socket: WakeSocket::new()?,
            generation: fork::generation(),
        })))
    }

    /// The socket's file descriptor.
    fn fileno(&self) -> i32 {
        self.0.socket.fileno()
    }

    /// Run each task that was woken; on the thread of the event loop.
    fn run_woken(&self) -> PyResult<()> {
        self.0.socket.clear()?;
        // after the socket is cleared: a task that is woken after this line signals again
        let woken = std::mem::take(&mut *self.0.woken.lock());
        for task in woken {
            task.run();
        }
        Ok(())
    }
}

impl LoopTasks {
    /// Returns a future of the running event loop, which is done when `ended` is. To be called with the tasks of that loop.
    ///
    /// Errors: the process was forked since the tasks were made, because two processes cannot share an event loop.
    pub fn future<'py>(
        &self,
        py: Python<'py>,
        ended: impl Future<Output = ()> + Send + 'static,
    ) -> PyResult<Bound<'py, PyAny>> {
        if self.0.generation != fork::generation() {
            return Err(errors::forked_loop_error());
        }
        let running = pyo3_async_runtimes::get_running_loop(py)?;
        let locals = TaskLocals::new(Bound::new(py, OwnLoop(running.unbind()))?.into_any());
        STARTING.set(Some(Arc::clone(&self.0)));
        let future = generic::future_into_py_with_locals::<Bridge, _, ()>(py, locals, async move {
            ended.await;
            Ok(())
        });
        STARTING.take();
        future
    }
}

thread_local! {
    /// The queue for the future that is being made: the generic bridge spawns tasks without saying on which loop.
    static STARTING: RefCell<Option<Arc<Queue>>> = const { RefCell::new(None) };
}

/// The event loop as pyo3-async-runtimes sees it. All its calls come from the loop's own thread, so that a result is set at
/// once, and the loop is not woken for each.
#[pyclass(frozen)]
struct OwnLoop(Py<PyAny>);

#[pymethods]
impl OwnLoop {
    fn create_future(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.0.call_method0(py, pyo3::intern!(py, "create_future"))
    }

    #[pyo3(signature = (callback, *arguments, context))]
    #[expect(clippy::unused_self, reason = "a method of event loops")]
    fn call_soon_threadsafe(
        &self,
        callback: &Bound<'_, PyAny>,
        arguments: &Bound<'_, PyTuple>,
        context: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        // setting a result runs nothing that looks at the context
        let _ = context;
        callback.call1(arguments).map(drop)
    }
}

/// The tasks of one event loop that were woken.
struct Queue {
    woken: Mutex<Vec<Arc<Task>>>,
    socket: WakeSocket,
    /// The process of the event loop.
    generation: u32,
}

type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A future that awaits an operation, until it is done.
struct Task {
    future: Mutex<Option<BoxedFuture>>,
    queue: Arc<Queue>,
}

impl Task {
    /// Polls the future, on the thread of the event loop.
    fn run(self: Arc<Self>) {
        // taken, because no lock may be held while Python code runs
        let Some(mut future) = self.future.lock().take() else {
            return;
        };
        let waker = Waker::from(Arc::clone(&self));
        let poll = future.as_mut().poll(&mut Context::from_waker(&waker));
        if poll.is_pending() {
            *self.future.lock() = Some(future);
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let queue = Arc::clone(&self.queue);
        if queue.generation != fork::generation() {
            // the event loop is the parent's, and its lock may be held by a thread that this process does not have
            return;
        }
        let is_first = {
            let mut woken = queue.woken.lock();
            woken.push(self);
            woken.len() == 1
        };
        if is_first {
            queue.socket.signal();
        }
    }
}

/// The runtime that pyo3-async-runtimes spawns on: tasks of the running event loop.
struct Bridge;

impl Runtime for Bridge {
    type JoinError = Never;
    type JoinHandle = Ready<Result<(), Never>>;

    fn spawn<F: Future<Output = ()> + Send + 'static>(future: F) -> Self::JoinHandle {
        if let Some(queue) = STARTING.with_borrow(Clone::clone) {
            let future: BoxedFuture = Box::pin(future);
            let future = Mutex::new(Rank::Leaf, Some(future));
            Arc::new(Task { future, queue }).run();
        }
        std::future::ready(Ok(()))
    }

    /// Runs the function at once: it tells Python, and the thread of the event loop has the interpreter lock.
    fn spawn_blocking<F: FnOnce() + Send + 'static>(function: F) -> Self::JoinHandle {
        function();
        std::future::ready(Ok(()))
    }
}

impl ContextExt for Bridge {
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

/// No error: a panic of a task goes to whoever polls the task.
enum Never {}

impl JoinError for Never {
    fn is_panic(&self) -> bool {
        match *self {}
    }

    fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        match self {}
    }
}
