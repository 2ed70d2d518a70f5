//! The table of figures.

use super::figure::{FLOWS, Figure};
use super::forwarders::Forwarder;

impl Forwarder {
    /// Its name in the table.
    fn description(self) -> &'static str {
        match self {
            Self::Nothing => "nothing: dropped at the balancer's TC ingress",
            Self::Routing => "the kernel's router",
            Self::Encapsulation => "TC encapsulation for one backend",
            Self::EncapsulationXdp => "XDP encapsulation for one backend",
            Self::Sluice => "**Sluice at TC**",
            Self::SluiceTracked => "**Sluice at TC**, service tracked",
            Self::SluiceXdp => "**Sluice at XDP**",
            Self::Ipvs => "IPVS, `mh`, tunnel mode",
        }
    }
}

/// Instructions of a forwarder with a number of flows.
fn find(figures: &[Figure], forwarder: Forwarder, flows: u16) -> Option<u32> {
    let same = |figure: &&Figure| figure.forwarder == forwarder && figure.flows == flows;
    figures.iter().find(same).map(|figure| figure.nanoseconds)
}

/// The table of all figures. Ratios are those of the larger number of flows.
pub fn table(figures: &[Figure]) -> String {
    let [one, many] = FLOWS;
    let mut lines = vec![
        "| forwarded by | 1 flow | 10 k flows | above nothing | times routing | times TC encapsulation |".to_owned(),
        "| --- | ---: | ---: | ---: | ---: | ---: |".to_owned(),
    ];
    let thousands = |number: u32| match (number / 1000, number % 1000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{thousands},{rest:03}"),
    };
    let cell = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), thousands);
    for forwarder in Forwarder::ALL {
        let first = find(figures, forwarder, one);
        let second = find(figures, forwarder, many);
        if first.is_none() && second.is_none() {
            continue;
        }
        let above = second
            .zip(find(figures, Forwarder::Nothing, many))
            .map(|(all, rest)| all.saturating_sub(rest));
        let times = |other| match second.zip(find(figures, other, many)) {
            Some((figure, other)) if forwarder != Forwarder::Nothing => {
                format!("{:.2}", f64::from(figure) / f64::from(other))
            }
            _ => String::new(),
        };
        lines.push(format!(
            "| {} | {} | {} | {} | {} | {} |",
            forwarder.description(),
            cell(first),
            cell(second),
            if forwarder == Forwarder::Nothing { String::new() } else { cell(above) },
            times(Forwarder::Routing),
            times(Forwarder::Encapsulation)
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_whole_figures() {
        let figure = |forwarder, nanoseconds| Figure { forwarder, flows: 10_000, nanoseconds };
        let figures = [
            figure(Forwarder::Nothing, 2000),
            figure(Forwarder::Routing, 4000),
            figure(Forwarder::Encapsulation, 5000),
            figure(Forwarder::Sluice, 6000),
        ];
        let table = table(&figures);
        assert!(
            table.contains("| **Sluice at TC** | - | 6,000 | 4,000 | 1.50 | 1.20 |"),
            "{table}"
        );
        assert!(!table.contains("XDP"), "{table}");
    }
}
