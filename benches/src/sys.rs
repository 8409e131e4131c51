//! The few system calls that the standard library has no name for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Level-triggered readiness of many sockets.
pub struct Epoll {
    descriptor: OwnedFd,
    ready: Vec<libc::epoll_event>,
}

/// What to be told about a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    ReadAndWrite,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked before it is owned.
        let descriptor = unsafe {
            let raw = check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
            OwnedFd::from_raw_fd(raw)
        };
        Ok(Self {
            descriptor,
            ready: Vec::with_capacity(1024),
        })
    }

    pub fn add(&self, socket: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), token, interest)
    }

    pub fn modify(&self, socket: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket.as_raw_fd(), token, interest)
    }

    pub fn remove(&self, socket: &impl AsRawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, socket.as_raw_fd(), 0, Interest::Read)
    }

    /// Wait for readiness (`None`: without end) and fill `tokens` with what is ready.
    pub fn wait(&mut self, timeout: Option<Duration>, tokens: &mut Vec<u64>) -> io::Result<()> {
        let limit = timeout.map(timespec);
        let limit_pointer = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        self.ready.clear();
        // SAFETY: `ready` has room for `capacity` events, `limit` outlives the call, no signal mask
        // is given, and the kernel says how many events it has written. The raw call because libc
        // implementations differ in having epoll_pwait2, whose nanoseconds are wanted here.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.descriptor.as_raw_fd(),
                self.ready.as_mut_ptr(),
                self.ready.capacity(),
                limit_pointer,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        tokens.clear();
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(())
            } else {
                Err(error)
            };
        }
        // SAFETY: the kernel has initialised exactly `count` events, at most the capacity.
        unsafe { self.ready.set_len(usize::try_from(count).unwrap_or(0)) };
        tokens.extend(self.ready.iter().map(|event| event.u64));
        Ok(())
    }

    fn control(
        &self,
        operation: i32,
        socket: RawFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let events = match interest {
            Interest::Read => libc::EPOLLIN,
            Interest::ReadAndWrite => libc::EPOLLIN | libc::EPOLLOUT,
        };
        let mut event = libc::epoll_event {
            events: events.cast_unsigned(),
            u64: token,
        };
        // SAFETY: `event` lives through the call, and both descriptors are open.
        unsafe {
            check(libc::epoll_ctl(
                self.descriptor.as_raw_fd(),
                operation,
                socket,
                &raw mut event,
            ))?;
        }
        Ok(())
    }
}

/// Block until the socket takes more bytes.
pub fn wait_writable(socket: &impl AsRawFd) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd that lives through the call.
    unsafe { check(libc::poll(&raw mut poll, 1, -1))? };
    Ok(())
}

/// User and kernel time that all threads of a process have used, as the scheduler counts it.
pub fn cpu_time(process: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is written before it is read.
    let failure = unsafe { libc::clock_getcpuclockid(process.cast_signed(), &raw mut clock) };
    if failure != 0 {
        return Err(io::Error::from_raw_os_error(failure));
    }
    let mut time = timespec(Duration::ZERO);
    // SAFETY: `time` lives through the call.
    unsafe { check(libc::clock_gettime(clock, &raw mut time))? };
    Ok(Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    ))
}

/// Resident memory of a process in bytes, counted page by page (the figure in `status` is rounded
/// by the kernel's per-core batches).
pub fn resident_bytes(process: u32) -> io::Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    rollup
        .lines()
        .find_map(|line| {
            line.strip_prefix("Rss:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| io::Error::other(format!("no Rss line in /proc/{process}/smaps_rollup")))
}

/// Memory that the system holds for all TCP sockets of the machine.
pub fn kernel_tcp_bytes() -> io::Result<u64> {
    let sockets = std::fs::read_to_string("/proc/net/sockstat")?;
    let pages = sockets.lines().find_map(|line| {
        let (_, pages) = line.strip_prefix("TCP:")?.split_once(" mem ")?;
        pages.trim().parse::<u64>().ok()
    });
    let pages = pages.ok_or_else(|| io::Error::other("no TCP line in /proc/net/sockstat"))?;
    // SAFETY: no pointers are passed.
    let page = check_long(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })?;
    Ok(pages * page)
}

/// Let this process open as many descriptors as the hard limit allows; returns that limit.
pub fn raise_open_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` lives through both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
    }
    Ok(limit.rlim_max)
}

/// Wake this thread at the time asked for, not up to 50 µs later.
pub fn sharpen_timers() -> io::Result<()> {
    // SAFETY: PR_SET_TIMERSLACK takes one integer, nanoseconds.
    unsafe { check(libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64))? };
    Ok(())
}

/// Have this thread run before all ordinary ones of its core, so that what it measures is the server's delay, not
/// that of a busy generator; false where the system does not allow it.
pub fn run_first() -> bool {
    let parameters = libc::sched_param { sched_priority: 2 };
    // SAFETY: 0 is the calling thread, and `parameters` lives through the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) == 0 }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn check_long(result: libc::c_long) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
