//! stub until the report lands
use crate::session::Session;
use std::path::Path;
pub(super) fn summary(dir: &Path, ids: &[String], session: &Session<'_>) -> anyhow::Result<()> {
    let (_, cells) = mutandis_bench::results::read(dir)?;
    let mut lines = vec![];
    for cell in cells.iter().filter(|c| ids.contains(&c.id)) {
        let ok = || cell.records.iter().filter(|r| r.error.is_none());
        lines.push(format!("{} {}/{} records {}", cell.id, cell.done, cell.info.parts, cell.records.len()));
        lines.push(format!("  compat {:?}", mutandis_bench::results::means(ok().map(|r| &r.after.compat))));
        lines.push(format!("  strict {:?}", mutandis_bench::results::means(ok().map(|r| &r.after.strict))));
        lines.push(format!("  errors {:?}", cell.records.iter().filter_map(|r| r.error.as_ref()).next()));
        lines.push(format!("  models {:?}", cell.models));
        let s = |f: fn(&mutandis_bench::results::Cost) -> f64| cell.costs.iter().map(f).sum::<f64>();
        lines.push(format!(
            "  edit {:.1} score {:.1} baseline {:.1}",
            s(|c| c.edit_seconds),
            s(|c| c.score_seconds),
            s(|c| c.baseline_seconds)
        ));
    }
    session.output.print(&lines, || lines.join("\n"))?;
    Ok(())
}
