//! The mempool's feerate diagram, aggregated into bands and depths while it is parsed, because a large mempool has 100,000 chunks.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::metrics::FEERATE_BANDS;

/// The depths for which a feerate is exported: value of the `blocks` label, and number of blocks.
const DEPTHS: [(&str, u64); 4] = [("1", 1), ("2", 2), ("3", 3), ("6", 6)];

/// Weight units of a block.
const BLOCK_WEIGHT: u64 = 4_000_000;

/// Weight units of a virtual byte.
const WEIGHT_PER_VBYTE: f64 = 4.0;

/// Weight and fees of a part of the mempool.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct FeeWeight {
    /// Weight units, adjusted for signature operations.
    weight: u64,
    /// Fees in satoshis, modified by the node's priorities (`prioritisetransaction`), which can make them negative.
    satoshis: i64,
}

/// Weight and fees of the mempool by feerate band, and the feerate at several depths.
#[derive(Debug, Default, PartialEq)]
pub struct FeerateDiagram {
    bands: [FeeWeight; FEERATE_BANDS.len()],
    /// Feerate in sat/vB at each depth; `None` if the mempool does not reach the depth.
    depths: [Option<f64>; DEPTHS.len()],
}

impl FeerateDiagram {
    /// For each band: its `from` label, its vbytes, and its fees in satoshis.
    pub fn bands(&self) -> impl Iterator<Item = (&'static str, f64, f64)> {
        let bands = FEERATE_BANDS.iter().zip(&self.bands);
        bands.map(|((from, _), part)| (*from, part.weight as f64 / WEIGHT_PER_VBYTE, part.satoshis as f64))
    }

    /// For each depth that the mempool reaches: its `blocks` label, and its feerate in sat/vB.
    pub fn depths(&self) -> impl Iterator<Item = (&'static str, f64)> {
        DEPTHS.iter().zip(&self.depths).filter_map(|((blocks, _), feerate)| Some((*blocks, (*feerate)?)))
    }

    /// Adds the chunk between two points of the diagram. Returns `None` if no chunk can lie between these points.
    fn add(&mut self, from: FeeWeight, to: FeeWeight) -> Option<()> {
        let weight = to.weight.checked_sub(from.weight)?;
        let satoshis = to.satoshis.saturating_sub(from.satoshis);
        if weight == 0 {
            return (satoshis == 0).then_some(()); // the diagram's first point
        }
        // Compared in tenths of a sat/vB, like the bounds of the bands: exact, and without overflow.
        let reaches = |tenths: u64| i128::from(satoshis) * 40 >= i128::from(tenths) * i128::from(weight);
        let band = FEERATE_BANDS.iter().rposition(|&(_, tenths)| reaches(tenths)).unwrap_or(0);
        let band = &mut self.bands[band];
        band.weight += weight;
        band.satoshis = band.satoshis.saturating_add(satoshis);
        for ((_, blocks), feerate) in DEPTHS.iter().zip(&mut self.depths) {
            if to.weight >= blocks * BLOCK_WEIGHT {
                feerate.get_or_insert(satoshis as f64 / (weight as f64 / WEIGHT_PER_VBYTE));
            }
        }
        Some(())
    }
}

/// A point of the diagram: total weight and fee of all chunks up to this one, in the order in which they would be mined.
#[derive(serde::Deserialize)]
struct DiagramPoint {
    weight: u64,
    /// Total fee in BTC.
    fee: f64,
}

impl<'de> Deserialize<'de> for FeerateDiagram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(DiagramVisitor)
    }
}

/// Parses the points of a diagram, and adds up the chunks between them.
struct DiagramVisitor;

impl<'de> Visitor<'de> for DiagramVisitor {
    type Value = FeerateDiagram;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("no points in the fee rate diagram")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut points: A) -> Result<FeerateDiagram, A::Error> {
        let (mut feerates, mut last) = (FeerateDiagram::default(), FeeWeight::default());
        while let Some(DiagramPoint { weight, fee }) = points.next_element()? {
            let point = FeeWeight { weight, satoshis: (fee * 1e8).round() as i64 };
            feerates.add(last, point).ok_or_else(|| A::Error::custom("the fee rate diagram decreases"))?;
            last = point;
        }
        Ok(feerates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(diagram: &str) -> Option<FeerateDiagram> {
        serde_json::from_str(diagram).ok()
    }

    #[test]
    fn chunks_are_in_the_band_of_their_feerate() {
        let feerates =
            of(r#"[{"weight":0,"fee":0.0},{"weight":400,"fee":0.00000500},{"weight":800,"fee":0.00000599},
                {"weight":1200,"fee":0.00000609},{"weight":1202,"fee":0.00000602}]"#);
        let bands: Vec<_> = feerates.unwrap().bands().filter(|(_, vbytes, _)| *vbytes > 0.0).collect();
        assert_eq!(
            bands,
            [("0", 0.5, -7.0), ("0.1", 100.0, 10.0), ("0.5", 100.0, 99.0), ("5", 100.0, 500.0)]
        );
    }

    #[test]
    fn depth_has_the_feerate_of_the_chunk_that_reaches_it() {
        let feerates =
            of(r#"[{"weight":0,"fee":0},{"weight":3999999,"fee":0.5},{"weight":4000399,"fee":0.50000700},
                {"weight":13000399,"fee":0.52250700}]"#);
        let feerates = feerates.unwrap();
        assert_eq!(feerates.depths().collect::<Vec<_>>(), [("1", 7.0), ("2", 1.0), ("3", 1.0)]);
        assert_eq!(of("[]").unwrap().depths().count(), 0);
    }

    #[test]
    fn malformed_diagram_is_rejected() {
        for wrong in [
            r#"[{"weight":4,"fee":1},{"weight":3,"fee":1}]"#,
            r#"[{"weight":0,"fee":1}]"#,
            r#"[{"weight":-4,"fee":1}]"#,
            r#"[{"weight":4}]"#,
            r#"{"weight":4,"fee":1}"#,
            "[7]",
            "7",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert!(of(r#"[{"weight":18446744073709551615,"fee":1e300}]"#).is_some(), "but nothing overflows");
    }
}
