//! The table of figures.

use super::{Balancer, FLOWS, Figure};

impl Balancer {
    /// What a reader of the table is told.
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

/// Instructions of a balancer with a number of flows.
fn of(figures: &[Figure], balancer: Balancer, flows: u16) -> Option<u32> {
    let same = |figure: &&Figure| figure.balancer == balancer && figure.flows == flows;
    figures.iter().find(same).map(|figure| figure.nanoseconds)
}

/// The table of what was measured; ratios are those of the larger number of flows.
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
    for balancer in Balancer::ALL {
        let (first, second) = (of(figures, balancer, one), of(figures, balancer, many));
        if first.is_none() && second.is_none() {
            continue;
        }
        let above = second
            .zip(of(figures, Balancer::Nothing, many))
            .map(|(all, rest)| all.saturating_sub(rest));
        let times = |other| match second.zip(of(figures, other, many)) {
            Some((figure, other)) if balancer != Balancer::Nothing => {
                format!("{:.2}", f64::from(figure) / f64::from(other))
            }
            _ => String::new(),
        };
        lines.push(format!(
            "| {} | {} | {} | {} | {} | {} |",
            balancer.description(),
            cell(first),
            cell(second),
            if balancer == Balancer::Nothing { String::new() } else { cell(above) },
            times(Balancer::Routing),
            times(Balancer::Encapsulation)
        ));
    }
    lines.join("\n")
}

impl Figure {
    /// The line that carries a figure out of the virtual machine.
    pub fn line(&self) -> String {
        format!("@figure {} {} {}", self.balancer.name(), self.flows, self.nanoseconds)
    }

    /// The figure of such a line.
    pub fn from_line(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("@figure ")?.split(' ');
        let name = words.next()?;
        Some(Self {
            balancer: Balancer::ALL.into_iter().find(|balancer| balancer.name() == name)?,
            flows: words.next()?.parse().ok()?,
            nanoseconds: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_survives_its_line() {
        for balancer in Balancer::ALL {
            let figure = Figure { balancer, flows: 10_000, nanoseconds: 5842 };
            assert_eq!(Figure::from_line(&figure.line()), Some(figure));
        }
        assert_eq!(Figure::from_line("@figure routing 1"), None);
    }

    #[test]
    fn ratios_are_of_whole_figures() {
        let figure = |balancer, nanoseconds| Figure { balancer, flows: 10_000, nanoseconds };
        let figures = [
            figure(Balancer::Nothing, 2000),
            figure(Balancer::Routing, 4000),
            figure(Balancer::Encapsulation, 5000),
            figure(Balancer::Sluice, 6000),
        ];
        let table = table(&figures);
        assert!(
            table.contains("| **Sluice at TC** | - | 6,000 | 4,000 | 1.50 | 1.20 |"),
            "{table}"
        );
        assert!(!table.contains("XDP"), "{table}");
    }
}
