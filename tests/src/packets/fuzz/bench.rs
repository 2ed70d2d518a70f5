//! Bindings of the packet path side by side: each gets the same frames, and each must do with them what its oracle says.

use anyhow::{Context as _, ensure};

use crate::packets::cases;
use crate::packets::loaded::{Hook, Loaded};
use crate::packets::native::Native;
use crate::packets::oracle::Oracle;
use crate::packets::world::{Balancer, Counters, Frame, World};

/// One of the bindings.
struct Binding {
    name: &'static str,
    balancer: Box<dyn Balancer>,
    /// Knows the frames that this binding was given: a flow or a first fragment that only others saw is unknown here.
    oracle: Oracle,
    /// What its counters should be.
    total: Counters,
    /// Frames that it was given.
    frames: u64,
}

impl Binding {
    fn new(name: &'static str, balancer: Box<dyn Balancer>) -> Self {
        Self { name, balancer, oracle: Oracle::default(), total: Counters::default(), frames: 0 }
    }
}

/// The bindings, their maps holding one world.
pub struct Bench {
    bindings: Vec<Binding>,
}

impl Bench {
    /// The packet path in memory, and through both programs if `kernel`, with maps that hold `world` and nothing else.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new(world: &World, kernel: bool) -> anyhow::Result<Self> {
        let mut bindings = vec![Binding::new("memory", Box::<Native>::default())];
        if kernel {
            bindings.push(Binding::new("tc", Box::new(Loaded::new(Hook::Tc)?)));
            bindings.push(Binding::new("xdp", Box::new(Loaded::new(Hook::Xdp)?)));
        }
        Self::over(world, bindings)
    }

    fn over(world: &World, bindings: Vec<Binding>) -> anyhow::Result<Self> {
        let mut bench = Self { bindings };
        bench.configure(world)?;
        Ok(bench)
    }

    /// Makes the maps hold another world; connections and counters stay.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn configure(&mut self, world: &World) -> anyhow::Result<()> {
        for binding in &mut self.bindings {
            binding.oracle.configure(world);
            binding.balancer.configure(world).with_context(|| binding.name)?;
        }
        Ok(())
    }

    /// A binding of a test's own.
    #[cfg(test)]
    pub(super) fn of(world: &World, balancer: Box<dyn Balancer>) -> anyhow::Result<Self> {
        Self::over(world, vec![Binding::new("tested", balancer)])
    }

    /// Gives a frame to each binding that takes it: verdict and bytes must be the oracle's. How many took it.
    ///
    /// # Errors
    ///
    /// The first difference, or what the kernel refused.
    pub fn judge(&mut self, frame: &Frame) -> anyhow::Result<usize> {
        let mut took = 0;
        for binding in &mut self.bindings {
            if !binding.balancer.accepts(frame) {
                continue;
            }
            took += 1;
            binding.frames += 1;
            let outcome = binding.oracle.judge(frame);
            cases::exchange(binding.balancer.as_mut(), frame, &outcome, &mut binding.total)
                .with_context(|| binding.name)?;
        }
        Ok(took)
    }

    /// Compares the counters of each binding with what the oracle's outcomes add up to.
    ///
    /// # Errors
    ///
    /// The first difference, or what the kernel refused.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        for Binding { name, balancer, total, .. } in &mut self.bindings {
            let counters = balancer.counters()?;
            // After a difference the next frame is judged by itself.
            let expected = std::mem::replace(total, counters);
            ensure!(expected == *total, "{name}: counters are {total:?} instead of {expected:?}");
        }
        Ok(())
    }

    /// How many frames each binding was given.
    pub fn frames(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.bindings.iter().map(|binding| (binding.name, binding.frames))
    }

    /// What the packet path in memory counted.
    pub fn counted(&self) -> &Counters {
        &self.bindings[0].total
    }
}
