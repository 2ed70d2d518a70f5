//! Captures: controls the capture in the balancer's program, and reads its events. See
//! [`sluice_datapath::balance::capture`].
#![expect(unsafe_code, reason = "reads ring buffer records, and registers a descriptor with tokio")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use sluice_datapath::abi::capture::control;
use sluice_datapath::abi::{CaptureEvent, CaptureState};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{AyaPod, Error, Pins};

/// The packets that a capture selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureFilter {
    /// The index of a service; `None` for all services and for packets without a service.
    pub service: Option<u32>,
    /// One in this many forwarded packets is captured, at random; 0 captures drops only.
    pub one_in: u32,
    /// Captures only those forwarded packets that open a TCP connection.
    pub new_connections: bool,
    /// The maximum number of events per second and CPU, at least 1.
    pub per_second: u32,
}

impl CaptureFilter {
    /// The words of the map `CAPTURE_CONTROL` for this selection, each with its index.
    pub fn words(&self) -> [(u32, u64); 3] {
        const SECOND: u64 = 1_000_000_000;

        let sample = if self.one_in == 0 { 0 } else { control::ALL / u64::from(self.one_in) };
        let flows = if self.new_connections { control::NEW_CONNECTIONS } else { 0 };
        [
            (control::SAMPLE, sample),
            (control::FILTER, u64::from(self.service.unwrap_or(0)) | flows),
            (control::INTERVAL, SECOND / u64::from(self.per_second.max(1))),
        ]
    }
}

/// A capture, the only one of its instance. It ends when it is dropped, or when it is not renewed
/// in time.
pub struct Capture {
    switch: Array<MapData, u64>,
    observers: PerCpuArray<MapData, AyaPod<CaptureState>>,
    ring: RingBuf<MapData>,
    /// `flock` on the directory above the pins, released by the kernel when the process ends. An
    /// exclusive `F_OFD_SETLK`, which the daemon's lock uses (`lock.rs`) because the lock
    /// can then be tested without taking it, needs a descriptor open for writing, and a directory
    /// has none.
    _lock: Flock<File>,
}

impl Capture {
    /// Opens the maps of captures. The capture starts with [`Self::renew`].
    ///
    /// # Errors
    ///
    /// [`Error::Captured`] while another process captures, [`Error::Absent`], [`Error::Open`],
    /// [`Error::Shape`], [`Error::Write`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        pins.require()?;
        // The parent, because the maps' own directory changes when maps are resized. These three
        // are in each.
        let mut directory = pins.directory();
        directory.pop();
        let system =
            |source| Error::System { what: format!("lock {}", directory.display()), source };
        let file = File::open(&directory).map_err(system)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(Error::Captured),
            Err((_, errno)) => return Err(system(io::Error::from(errno))),
        };
        let mut capture = Self {
            switch: open(pins, "CAPTURE_CONTROL", Map::Array)?,
            observers: open(pins, "CAPTURE_STATE", Map::PerCpuArray)?,
            ring: open(pins, "CAPTURE_EVENTS", Map::RingBuf)?,
            _lock: lock,
        };
        // Removes the state of a capture that was killed.
        capture.set(control::UNTIL, 0)?;
        let failed = |source| Error::Write { map: "CAPTURE_STATE", source };
        let cpus = capture.observers.get(&0, 0).map_err(failed)?.len();
        let zeros = PerCpuValues::try_from(vec![AyaPod(CaptureState::default()); cpus]).map_err(
            |source| Error::System { what: "reset the map CAPTURE_STATE".to_owned(), source },
        )?;
        capture.observers.set(0, zeros, 0).map_err(failed)?;
        while capture.ring.next().is_some() {}
        Ok(capture)
    }

    /// Sets the selection, from the next packet on.
    pub fn select(&mut self, selection: &CaptureFilter) -> Result<(), Error> {
        selection.words().into_iter().try_for_each(|(word, value)| self.set(word, value))
    }

    /// Starts or extends the capture, to end after `time`.
    pub fn renew(&mut self, time: Duration) -> Result<(), Error> {
        self.set(control::UNTIL, (monotonic()? + time).as_nanos() as u64)
    }

    /// Stops the capture. Its events can still be read.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.set(control::UNTIL, 0)
    }

    /// The next event, in the order in which processing of the packets ended; `None` if there is
    /// none yet.
    pub fn next_event(&mut self) -> Option<CaptureEvent> {
        let item = self.ring.next()?;
        // The map has this layout version, so each of its records is an event. The kernel aligns
        // records to 8 bytes.
        // SAFETY: every bit pattern is a valid event, and the length is checked.
        (item.len() >= size_of::<CaptureEvent>())
            .then(|| unsafe { item.as_ptr().cast::<CaptureEvent>().read_unaligned() })
    }

    /// The events since the capture was opened that the rate limit suppressed, and those that did
    /// not fit into the ring buffer.
    pub fn missed(&self) -> Result<(u64, u64), Error> {
        let values = self
            .observers
            .get(&0, 0)
            .map_err(|source| Error::Read { map: "CAPTURE_STATE", source })?;
        Ok(values.iter().fold((0, 0), |(suppressed, lost), AyaPod(cpu)| {
            (suppressed + cpu.suppressed, lost + cpu.lost)
        }))
    }

    /// A descriptor that becomes readable when there are events. Requires a tokio runtime.
    pub fn readable(&self) -> Result<AsyncFd<OwnedFd>, Error> {
        let failed = |source| Error::System {
            what: "wait for events in the ring buffer CAPTURE_EVENTS".to_owned(),
            source,
        };
        let descriptor = self.ring.as_fd().try_clone_to_owned().map_err(failed)?;
        // SAFETY: the `AsyncFd` owns the descriptor, which therefore stays open as long as it
        // lives.
        let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        watched.map_err(|error| failed(error.into()))
    }

    fn set(&mut self, word: u32, value: u64) -> Result<(), Error> {
        self.switch
            .set(word, value, 0)
            .map_err(|source| Error::Write { map: "CAPTURE_CONTROL", source })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // On failure the capture ends by timeout.
        let _ = self.stop();
    }
}

/// Opens a pinned map and checks its type.
fn open<T>(pins: &Pins, name: &'static str, variant: impl Fn(MapData) -> Map) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    let path = pins.map(name);
    let data = match MapData::from_pin(&path) {
        Ok(data) => data,
        Err(source) => return Err(Error::Open { path, source }),
    };
    variant(data)
        .try_into()
        .map_err(|error: MapError| Error::Shape { path, what: error.to_string() })
}

/// Whether a capture is enabled. The program notices the end of a killed capture with the next
/// packet after its timeout.
pub fn is_captured(pins: &Pins) -> Result<bool, Error> {
    pins.require()?;
    let words: Array<MapData, u64> = open(pins, "CAPTURE_CONTROL", Map::Array)?;
    let until = words
        .get(&control::UNTIL, 0)
        .map_err(|source| Error::Read { map: "CAPTURE_CONTROL", source })?;
    Ok(until != 0)
}

/// The time of the clock that events use (`CLOCK_MONOTONIC`).
pub fn monotonic() -> Result<Duration, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map(Duration::from)
        .map_err(|errno| Error::System { what: "read the clock".to_owned(), source: errno.into() })
}
