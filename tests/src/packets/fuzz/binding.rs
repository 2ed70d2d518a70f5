//! Ways of running a program, each with the oracle that says what should come of it.

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use sluice::kernel::bpf;

use super::bench::Seen;
use crate::packets::cases;
use crate::packets::loaded::{self, Hook, Loaded, LoadedHost};
use crate::packets::native::{Native, NativeHost};
use crate::packets::oracle::Oracle;
use crate::packets::oracle::clamp::clamped;
use crate::packets::oracle::decapsulate::decapsulated;
use crate::packets::world::{
    Balancer, Clamper, Counters, Decapsulator, Frame, Host, Unwraps, World,
};

/// One of them.
pub(super) trait Binding {
    /// Whether it can be given a frame.
    fn accepts(&self, frame: &Frame) -> bool;

    /// Gives it a frame: verdict and bytes must be the oracle's.
    fn judge(&mut self, frame: &Frame) -> anyhow::Result<()>;

    /// Compares its counters with what the oracle's outcomes add up to.
    fn settle(&mut self) -> anyhow::Result<()>;

    /// Makes its maps hold another world; connections and counters stay.
    fn configure(&mut self, _: &World) -> anyhow::Result<()> {
        bail!("a backend's program has no world")
    }

    /// Adds what became of its frames.
    fn add_to(&self, seen: &mut Seen);
}

/// A binding and its name.
pub(super) type Named = (&'static str, Box<dyn Binding>);

/// The balancer's program, in memory and, if `kernel`, at both hooks.
pub(super) fn of_balancer(world: &World, kernel: bool) -> anyhow::Result<Vec<Named>> {
    let mut balancers: Vec<(_, Box<dyn Balancer>)> = vec![("memory", Box::<Native>::default())];
    if kernel {
        balancers.push(("tc", Box::new(Loaded::new(Hook::Tc)?)));
        balancers.push(("xdp", Box::new(Loaded::new(Hook::Xdp)?)));
    }
    balancers
        .into_iter()
        .map(|(name, balancer)| Ok((name, balancing(world, balancer).context(name)?)))
        .collect()
}

/// A balancer of whichever kind.
pub(super) fn balancing(
    world: &World,
    balancer: Box<dyn Balancer>,
) -> anyhow::Result<Box<dyn Binding>> {
    let mut binding = Balancing { balancer, oracle: Oracle::default(), total: Counters::default() };
    binding.configure(world)?;
    Ok(Box::new(binding))
}

/// The backend's program that decapsulates.
pub(super) fn of_backend(host: &Host, kernel: bool) -> anyhow::Result<Vec<Named>> {
    let crosses = !kernel || bpf::decapsulates_across_families();
    let mut hosts: Vec<(_, Box<dyn Decapsulator>)> =
        vec![("memory", Box::new(NativeHost::new(crosses)))];
    if kernel {
        hosts.push(("backend", Box::new(LoadedHost::new()?)));
    }
    let binding = |(name, mut decapsulator): (_, Box<dyn Decapsulator>)| -> anyhow::Result<Named> {
        decapsulator.configure(host).context(name)?;
        Ok((
            name,
            Box::new(Decapsulating {
                decapsulator,
                host: host.clone(),
                crosses,
                total: Unwraps::default(),
            }),
        ))
    };
    hosts.into_iter().map(binding).collect()
}

/// The backend's program that clamps.
pub(super) fn of_clamp(
    (vips, largest): (Vec<IpNet>, [u32; 2]),
    kernel: bool,
) -> anyhow::Result<Vec<Named>> {
    let mut clampers: Vec<(_, Box<dyn Clamper>)> = vec![("memory", Box::<NativeHost>::default())];
    if kernel {
        clampers.push(("clamp", Box::new(LoadedHost::new()?)));
    }
    let binding = |(name, mut clamper): (_, Box<dyn Clamper>)| -> anyhow::Result<Named> {
        clamper.configure(&vips, largest).context(name)?;
        Ok((name, Box::new(Clamping { clamper, vips: vips.clone(), largest, total: 0 })))
    };
    clampers.into_iter().map(binding).collect()
}

struct Balancing {
    balancer: Box<dyn Balancer>,
    /// Knows the frames that this binding was given: a flow or a first fragment that only others
    /// saw is unknown here.
    oracle: Oracle,
    /// What its counters should be.
    total: Counters,
}

impl Binding for Balancing {
    fn accepts(&self, frame: &Frame) -> bool {
        self.balancer.accepts(frame) && !self.oracle.cannot_tell(frame)
    }

    fn judge(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let outcome = self.oracle.judge(frame);
        cases::exchange(self.balancer.as_mut(), frame, &outcome, &mut self.total)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let counters = self.balancer.counters()?;
        // After a difference the next frame is judged by itself.
        let expected = std::mem::replace(&mut self.total, counters);
        ensure!(expected == self.total, "counters are {:?} instead of {expected:?}", self.total);
        Ok(())
    }

    fn configure(&mut self, world: &World) -> anyhow::Result<()> {
        self.oracle.configure(world);
        self.balancer.configure(world)
    }

    fn add_to(&self, seen: &mut Seen) {
        seen.balanced.add_all(&self.total);
    }
}

struct Decapsulating {
    decapsulator: Box<dyn Decapsulator>,
    host: Host,
    crosses: bool,
    total: Unwraps,
}

impl Binding for Decapsulating {
    fn accepts(&self, frame: &Frame) -> bool {
        // Only a test run cannot be told that a frame is merged.
        !self.decapsulator.refuses_merged() || loaded::takes(frame)
    }

    fn judge(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let expected = decapsulated(frame, &self.host, self.crosses);
        cases::exchange_with_backend(self.decapsulator.as_mut(), frame, &expected, &mut self.total)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let counters = self.decapsulator.counters()?;
        let expected = std::mem::replace(&mut self.total, counters);
        ensure!(expected == self.total, "counters are {:?} instead of {expected:?}", self.total);
        Ok(())
    }

    fn add_to(&self, seen: &mut Seen) {
        let ((packets, bytes), reasons) = &mut seen.decapsulated;
        *packets += self.total.0.0;
        *bytes += self.total.0.1;
        for (reason, count) in &self.total.1 {
            *reasons.entry(*reason).or_default() += count;
        }
    }
}

struct Clamping {
    clamper: Box<dyn Clamper>,
    vips: Vec<IpNet>,
    largest: [u32; 2],
    total: u64,
}

impl Binding for Clamping {
    fn accepts(&self, frame: &Frame) -> bool {
        // The program asks for nothing that a test run cannot tell it; what one does not take,
        // neither program gets.
        loaded::takes(frame)
    }

    fn judge(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let judged = clamped(frame, &self.vips, self.largest);
        self.total += u64::from(judged.is_some());
        let left = self.clamper.send(frame)?;
        let expected = judged.as_ref().unwrap_or(&frame.bytes);
        ensure!(
            left == *expected,
            "{:02x?} became {left:02x?} instead of {expected:02x?}",
            frame.bytes
        );
        Ok(())
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let counted = self.clamper.clamped()?;
        let expected = std::mem::replace(&mut self.total, counted);
        ensure!(expected == counted, "{counted} are counted instead of {expected}");
        Ok(())
    }

    fn add_to(&self, seen: &mut Seen) {
        seen.clamped += self.total;
    }
}
