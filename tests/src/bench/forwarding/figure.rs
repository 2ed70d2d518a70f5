//! One measured figure and its text form.

use super::forwarders::Forwarder;

/// Numbers of flows (source ports) in the measurements.
pub const FLOWS: [u16; 2] = [1, 10_000];

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The forwarder.
    pub forwarder: Forwarder,
    /// Number of flows of the packets.
    pub flows: u16,
    /// Nanoseconds of the machine's clock per packet, from the generator to the sink.
    pub nanoseconds: u32,
}

impl Figure {
    /// The line that transports a figure out of the virtual machine.
    pub fn line(&self) -> String {
        format!("@figure {} {} {}", self.forwarder.name(), self.flows, self.nanoseconds)
    }

    /// The figure in such a line.
    pub fn from_line(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("@figure ")?.split(' ');
        let name = words.next()?;
        Some(Self {
            forwarder: Forwarder::ALL.into_iter().find(|forwarder| forwarder.name() == name)?,
            flows: words.next()?.parse().ok()?,
            nanoseconds: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_equals_the_figure_of_its_line() {
        for forwarder in Forwarder::ALL {
            let figure = Figure { forwarder, flows: 10_000, nanoseconds: 5842 };
            assert_eq!(Figure::from_line(&figure.line()), Some(figure));
        }
        assert_eq!(Figure::from_line("@figure routing 1"), None);
    }
}
