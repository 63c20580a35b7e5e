//! Pictures of what was located, as SVG.

use std::fmt::Write;

use mutandis_edit::primitives::neurons::Neuron;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
/// Room for axes: left, top, right, bottom.
const ROOM: [f64; 4] = [64.0, 40.0, 16.0, 44.0];
/// Neurons that are named.
const NAMED: usize = 5;

/// Neurons as dots: layers to the right, attribution upwards.
pub(super) fn neurons(title: &str, layers: usize, neurons: &[Neuron]) -> String {
    let [left, top, right, bottom] = ROOM;
    let most = neurons.iter().map(|n| n.attribution).fold(f64::MIN_POSITIVE, f64::max);
    let wide = (WIDTH - left - right) / layers.max(1) as f64;
    let x = |layer: usize| left + wide * (layer as f64 + 0.5);
    let y = |value: f64| HEIGHT - bottom - (HEIGHT - top - bottom) * value / most;
    let mut svg = String::new();
    let mut put = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = svg.write_fmt(text);
        svg.push('\n');
    };
    put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"#
    ));
    put(format_args!(r#"<rect width="100%" height="100%" fill="white"/>"#));
    put(format_args!(r#"<text x="{left}" y="22" font-size="14">{}</text>"#, escaped(title)));
    for i in 0..=4 {
        let value = most * f64::from(i) / 4.0;
        let at = y(value);
        put(format_args!(r##"<path d="M{left} {at:.1}H{}" stroke="#ddd"/>"##, WIDTH - right));
        put(format_args!(
            r#"<text x="{}" y="{:.1}" text-anchor="end">{value:.3}</text>"#,
            left - 8.0,
            at + 4.0
        ));
    }
    let every = layers.div_ceil(16).max(1);
    for layer in (0..layers).step_by(every) {
        let at = HEIGHT - bottom + 16.0;
        put(format_args!(r#"<text x="{:.1}" y="{at}" text-anchor="middle">{layer}</text>"#, x(layer)));
    }
    put(format_args!(
        r#"<text x="{}" y="{}" text-anchor="middle">layer</text>"#,
        (WIDTH + left) / 2.0,
        HEIGHT - 8.0
    ));
    for (i, n) in neurons.iter().enumerate().rev() {
        let (x, y) = (x(n.layer), y(n.attribution));
        put(format_args!(
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="#2a6f97" fill-opacity="0.6"><title>layer {}, neuron {}: {:.4}</title></circle>"##,
            n.layer, n.neuron, n.attribution
        ));
        if i < NAMED {
            // To the left where there is no room.
            let (at, anchor) = if x > WIDTH - right - 60.0 { (x - 7.0, "end") } else { (x + 7.0, "start") };
            put(format_args!(
                r#"<text x="{at:.1}" y="{:.1}" text-anchor="{anchor}" font-size="11">{}</text>"#,
                y + 4.0,
                n.neuron
            ));
        }
    }
    put(format_args!("</svg>"));
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
