//! Who is on a channel, as presence reports it.

use super::wiring::Node;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::Error;
use crate::base::sync::{Mutex, Rank};
use crate::ports::broker::Failure;
use crate::ports::calls::{ChannelInfo, Reply};
use crate::ports::presence::{ChannelPresence, Cursor, MAX_PAGE, PresencePage, Total};
use std::collections::HashSet;
use std::sync::Arc;

/// Most names in the answer to `presence`.
const MAX_PRESENT: usize = MAX_PAGE;

/// The number of members of each channel.
type Counts = Vec<(Arc<str>, usize)>;

impl Node {
    /// The members of a channel, in the order in which they came; none for a channel that does not exist.
    ///
    /// Errors: presence fails.
    pub fn presence(
        &self,
        channel: &str,
        later: &mut Later<'_, Vec<Arc<str>>>,
    ) -> Progress<Vec<Arc<str>>> {
        all_members(&self.presence_of(channel), Members::default(), later)
    }

    /// How many are on each channel, in the order in which the channels were made.
    ///
    /// Errors: presence fails.
    pub fn census(&self, later: &mut Later<'_, Counts>) -> Progress<Counts> {
        let channels = self.channels.all();
        let names = channels.iter().map(|channel| Arc::clone(&channel.name));
        let census = Arc::new(Census::new(names));
        for (at, channel) in channels.iter().enumerate() {
            let counting = channel.presence.count(&mut || {
                census.end_later(later);
                let census = Arc::clone(&census);
                Completion::new(move |total| census.report(at, total))
            });
            if let Progress::Ended(total) = counting {
                census.report(at, total);
            }
        }
        census.progress()
    }

    /// A channel, with its members; `None` if there is no such channel.
    ///
    /// Errors: presence fails.
    pub fn channel_info(
        &self,
        name: &str,
        later: &mut Later<'_, Option<ChannelInfo>>,
    ) -> Progress<Option<ChannelInfo>> {
        let Some(channel) = self.channels.get(name) else {
            return Progress::Ended(Ok(None));
        };
        let info = move |subscribers| {
            Some(ChannelInfo {
                name: Arc::clone(&channel.name),
                kind: channel.kind,
                subscribers,
                created_at: channel.created,
            })
        };
        let presence = self.presence_of(name);
        let mut info_later = || {
            let (completion, info) = (later(), info.clone());
            Completion::new(move |members: Result<_, Error>| {
                completion.complete(members.map(info));
            })
        };
        match all_members(&presence, Members::default(), &mut info_later) {
            Progress::Ended(members) => Progress::Ended(members.map(info)),
            Progress::Begun(_) => Progress::Begun(None),
        }
    }

    /// The number of subscribers of a channel, and the first of them.
    ///
    /// Errors: presence fails.
    pub(super) fn present(&self, name: &str, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        let present = |page: PresencePage| Reply::Present {
            online: page.total.members,
            users: page.members,
        };
        let mut page_later = || {
            let completion = later();
            Completion::new(move |page: Result<_, Failure>| {
                completion.complete(page.map(present).map_err(Error::from));
            })
        };
        let presence = self.presence_of(name);
        match presence.page(None, MAX_PRESENT, &mut page_later) {
            Progress::Ended(page) => Progress::Ended(page.map(present).map_err(Error::from)),
            Progress::Begun(_) => Progress::Begun(None),
        }
    }

    /// The presence of a channel that this process may not know. Makes no channel.
    fn presence_of(&self, name: &str) -> Arc<dyn ChannelPresence> {
        match self.channels.get(name) {
            Some(channel) => Arc::clone(&channel.presence),
            None => self.presence.open(&Arc::from(name)),
        }
    }
}

/// Members of a channel, read page by page.
#[derive(Default)]
struct Members {
    ids: Vec<Arc<str>>,
    next: Option<Cursor>,
}

impl Members {
    /// Adds a page; true if it is the last.
    fn add(&mut self, page: PresencePage) -> bool {
        let is_only = self.next.is_none();
        self.ids.extend(page.members);
        self.next = page.next;
        if page.next.is_none() && !is_only {
            // a member that left and came again between two pages is in both
            let mut seen = HashSet::new();
            self.ids.retain(|id| seen.insert(Arc::clone(id)));
        }
        page.next.is_none()
    }
}

/// Reads all pages behind those that were read.
fn all_members(
    presence: &Arc<dyn ChannelPresence>,
    mut members: Members,
    later: &mut Later<'_, Vec<Arc<str>>>,
) -> Progress<Vec<Arc<str>>> {
    loop {
        let after = members.next;
        let page = presence.page(after, MAX_PAGE, &mut || {
            let members = std::mem::take(&mut members);
            when_page_is_read(Arc::clone(presence), members, later())
        });
        match page {
            Progress::Ended(Ok(page)) => {
                if members.add(page) {
                    return Progress::Ended(Ok(members.ids));
                }
            }
            Progress::Ended(Err(failure)) => return Progress::Ended(Err(failure.into())),
            Progress::Begun(_) => return Progress::Begun(None),
        }
    }
}

fn when_page_is_read(
    presence: Arc<dyn ChannelPresence>,
    mut members: Members,
    completion: Completion<Vec<Arc<str>>>,
) -> Completion<PresencePage, Failure> {
    Completion::new(move |page: Result<PresencePage, Failure>| {
        match page.map(|page| members.add(page)) {
            Ok(true) => completion.complete(Ok(members.ids)),
            Err(failure) => completion.complete(Err(failure.into())),
            Ok(false) => {
                let mut completion = Some(completion);
                let mut later = || completion.take().unwrap_or_else(|| Completion::new(drop));
                if let Progress::Ended(outcome) = all_members(&presence, members, &mut later)
                    && let Some(completion) = completion
                {
                    completion.complete(outcome);
                }
            }
        }
    })
}

/// The counts of all channels, as they come.
struct Census(Mutex<CensusState>);

struct CensusState {
    counts: Counts,
    failure: Option<Failure>,
    /// The counts that have not come, and one more until all are asked for.
    missing: usize,
    /// Set where a count comes later.
    completion: Option<Completion<Counts>>,
}

impl Census {
    fn new(names: impl Iterator<Item = Arc<str>>) -> Self {
        let counts: Counts = names.map(|name| (name, 0)).collect();
        Self(Mutex::new(
            Rank::Leaf,
            CensusState {
                missing: counts.len() + 1,
                counts,
                failure: None,
                completion: None,
            },
        ))
    }

    /// Has the census end by its completion.
    fn end_later(&self, later: &mut Later<'_, Counts>) {
        self.0.lock().completion.get_or_insert_with(later);
    }

    fn report(&self, at: usize, total: Result<Total, Failure>) {
        let mut state = self.0.lock();
        match total {
            Ok(total) => state.counts[at].1 = total.members,
            Err(failure) => state.failure = Some(failure),
        }
        state.missing -= 1;
        if state.missing == 0
            && let Some(completion) = state.completion.take()
        {
            let outcome = state.take_outcome();
            drop(state);
            completion.complete(outcome);
        }
    }

    /// Where the census stands when all counts are asked for.
    fn progress(&self) -> Progress<Counts> {
        let mut state = self.0.lock();
        state.missing -= 1;
        if state.missing > 0 {
            return Progress::Begun(None);
        }
        let outcome = state.take_outcome();
        match state.completion.take() {
            None => Progress::Ended(outcome),
            // the completion is made, so it gets the outcome
            Some(completion) => {
                drop(state);
                completion.complete(outcome);
                Progress::Begun(None)
            }
        }
    }
}

impl CensusState {
    fn take_outcome(&mut self) -> Result<Counts, Error> {
        match self.failure.take() {
            None => Ok(std::mem::take(&mut self.counts)),
            Some(failure) => Err(failure.into()),
        }
    }
}
