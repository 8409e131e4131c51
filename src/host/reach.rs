//! The node of the application, wherever it is: in this process while this process serves, else in the process that serves.

use super::server::Server;
use crate::base::completion::{Later, Progress};
use crate::base::error::Error;
use crate::base::fork;
use crate::link::calling::{LinkedCalls, NotSent};
use crate::link::rendezvous::Rendezvous;
use crate::ports::calls::{Call, Calls, Reply};
use arc_swap::ArcSwapOption;
use std::mem::ManuallyDrop;
use std::sync::{Arc, OnceLock};

/// Makes calls on the node of the application.
///
/// While the server of this process does not run, a call goes to the process that serves the application, if there is one.
/// This process attaches at its first such call, and again when that process was replaced. Otherwise the node of this process
/// takes the call: it has no connections then, and keeps what a later start of the server delivers.
pub struct ReachingCalls {
    server: Arc<Server>,
    own: Arc<dyn Calls>,
    /// Found at the first use; `None` where no other process shares the messenger, or no folder can be used.
    place: OnceLock<Option<Rendezvous>>,
    /// No lock: a forked child could find the lock locked.
    attached: ArcSwapOption<Attached>,
    /// Asked before each attempt to attach; without it, this process always may.
    may_attach: OnceLock<MayAttach>,
}

/// How often a call that was not sent is tried on another link.
const MAX_ATTEMPTS: usize = 3;

type MayAttach = Box<dyn Fn() -> bool + Send + Sync>;

/// A link, and the process that made it. A forked child has no thread for the link of its parent.
struct Attached {
    calls: ManuallyDrop<LinkedCalls>,
    generation: u32,
}

impl ReachingCalls {
    pub fn new(server: Arc<Server>) -> Self {
        Self {
            own: server.calls(),
            server,
            place: OnceLock::new(),
            attached: ArcSwapOption::empty(),
            may_attach: OnceLock::new(),
        }
    }

    /// Sets a function that decides whether this process may attach. Counts once; the function must not make calls.
    pub fn ask_before_attach(&self, may_attach: MayAttach) {
        let _ = self.may_attach.set(may_attach);
    }

    /// True if this process serves, so that short calls end at once.
    pub fn is_local(&self) -> bool {
        self.server.is_started()
    }

    /// True if calls go to a process that serves.
    ///
    /// Errors: as `link`.
    pub fn reaches_server(&self) -> Result<bool, Error> {
        Ok(self.server.is_started() || self.link()?.is_some())
    }

    /// The link to the process that serves the application; `None` if this process serves, or no process does.
    ///
    /// Errors: a process serves, and refuses this process.
    fn link(&self) -> Result<Option<Arc<Attached>>, Error> {
        if self.server.is_started() {
            return Ok(None);
        }
        let Some(place) = self.place.get_or_init(|| self.find_place()) else {
            return Ok(None);
        };
        let known = self.attached.load_full();
        if known.as_ref().is_some_and(|known| known.is_usable()) {
            return Ok(known);
        }
        if self
            .may_attach
            .get()
            .is_some_and(|may_attach| !may_attach())
        {
            return Ok(None);
        }
        let Some(calls) = LinkedCalls::attach(place.socket())? else {
            return Ok(None);
        };
        Ok(Some(self.keep(known, Attached::new(calls))))
    }

    /// Keeps a new link in place of `known`, and returns the link that is kept: that of another thread, if that thread was
    /// first. The end of a link fails the calls in flight, so a link that others may use is never replaced.
    fn keep(&self, mut known: Option<Arc<Attached>>, new: Attached) -> Arc<Attached> {
        let new = Arc::new(new);
        loop {
            let found = self
                .attached
                .compare_and_swap(&known, Some(Arc::clone(&new)));
            let found = arc_swap::Guard::into_inner(found);
            let is_replaced = found.as_ref().map(Arc::as_ptr) == known.as_ref().map(Arc::as_ptr);
            match found {
                _ if is_replaced => return new,
                Some(found) if found.is_usable() => return found,
                found => known = found,
            }
        }
    }

    fn find_place(&self) -> Option<Rendezvous> {
        let config = self.server.config();
        if config.app_id.is_empty() {
            return None;
        }
        // the process that serves logs the problem
        Rendezvous::of(&config.app_id, config.runtime_dir.as_deref()).ok()
    }
}

impl Attached {
    fn new(calls: LinkedCalls) -> Self {
        Self {
            calls: ManuallyDrop::new(calls),
            generation: fork::generation(),
        }
    }

    fn is_usable(&self) -> bool {
        self.generation == fork::generation() && self.calls.is_attached()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // the locks of the parent's link may be locked by threads that this process does not have
        if self.generation == fork::generation() {
            // SAFETY: nothing uses the value after this: it is taken here alone, and this is its end.
            drop(unsafe { ManuallyDrop::take(&mut self.calls) });
        }
    }
}

impl Calls for ReachingCalls {
    fn call(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        let mut made = None;
        for _ in 0..MAX_ATTEMPTS {
            let mut later = || made.take().unwrap_or_else(&mut *later);
            let link = match self.link() {
                Ok(Some(link)) => link,
                Ok(None) => return self.own.call(call, &mut later),
                Err(error) => return Progress::Ended(Err(error)),
            };
            match link.calls.send(call, &mut later) {
                Ok(()) => return Progress::Begun(None),
                // the process has just ended: another may serve by now
                Err(NotSent {
                    error: Error::Link(_),
                    completion,
                }) => made = completion,
                Err(NotSent { error, .. }) => return Progress::Ended(Err(error)),
            }
        }
        Progress::Ended(Err(Error::Link(
            "the processes that serve the application end as soon as they are reached".to_owned(),
        )))
    }
}
