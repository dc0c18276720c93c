//! Parser of the mempool's fee rate diagram (getmempoolfeeratediagram). The diagram has a point after each chunk, a
//! group of mempool transactions that a miner would add to a block together. The parser adds each chunk to a total by
//! fee rate (band), and determines the fee rate after certain numbers of full blocks (depths). It does not store the
//! chunks, because a large mempool has 100,000 chunks.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::metrics::FEERATE_BANDS;

/// Depths in the mempool for which a fee rate is exported: value of the `blocks` label, and depth as a number of full
/// blocks.
const DEPTHS: [(&str, u64); 4] = [("1", 1), ("2", 2), ("3", 3), ("6", 6)];

/// Maximum weight of a block, in weight units.
const BLOCK_WEIGHT: u64 = 4_000_000;

/// Weight of one virtual byte, in weight units.
const WEIGHT_PER_VBYTE: f64 = 4.0;

/// Total weight and total fees of a part of the mempool: of the first chunks up to a point of the diagram, or of a fee
/// rate band.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct FeeWeight {
    /// Weight in weight units, adjusted for signature operations.
    weight: u64,
    /// Total fees in satoshis, including the fee deltas that the operator has set with `prioritisetransaction`. These
    /// deltas can make the total negative.
    satoshis: i64,
}

/// Summary of the fee rate diagram: weight and fees of the mempool by fee rate band, and the fee rate at each of the
/// `DEPTHS`.
#[derive(Debug, Default, PartialEq)]
pub struct FeerateDiagram {
    bands: [FeeWeight; FEERATE_BANDS.len()],
    /// Fee rate in sat/vB of the chunk that reaches each depth; `None` if the mempool is smaller than the depth.
    depths: [Option<f64>; DEPTHS.len()],
}

impl FeerateDiagram {
    /// Returns for each fee rate band its `from` label, the size of its chunks in vbytes, and their fees in satoshis.
    pub fn bands(&self) -> impl Iterator<Item = (&'static str, f64, f64)> {
        let bands = FEERATE_BANDS.iter().zip(&self.bands);
        bands.map(|((from, _), part)| (*from, part.weight as f64 / WEIGHT_PER_VBYTE, part.satoshis as f64))
    }

    /// Returns the `blocks` label and the fee rate in sat/vB of each depth that is not greater than the size of the
    /// mempool.
    pub fn depths(&self) -> impl Iterator<Item = (&'static str, f64)> {
        DEPTHS.iter().zip(&self.depths).filter_map(|((blocks, _), feerate)| Some((*blocks, (*feerate)?)))
    }

    /// Adds the chunk of mempool transactions between two consecutive points of the diagram to the summary. Returns
    /// `None` if the points are invalid: the weight decreases, or the fee changes without a change of the weight.
    fn add(&mut self, from: FeeWeight, to: FeeWeight) -> Option<()> {
        let weight = to.weight.checked_sub(from.weight)?;
        let satoshis = to.satoshis.saturating_sub(from.satoshis);
        if weight == 0 {
            return (satoshis == 0).then_some(()); // the first point of the diagram is (0, 0)
        }
        // The chunk's fee rate is compared with the lower bounds of the bands, in tenths of a sat/vB. The comparison
        // uses 128-bit integers, which cannot overflow here.
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

/// A point of the diagram in the node's JSON: total weight and fees of the first chunks, in the order in which they
/// would be mined.
#[derive(serde::Deserialize)]
struct DiagramPoint {
    weight: u64,
    /// Total fees in BTC.
    fee: f64,
}

impl<'de> Deserialize<'de> for FeerateDiagram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(DiagramVisitor)
    }
}

/// Serde visitor that parses the points of a diagram and adds the chunks between them to a [`FeerateDiagram`].
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
