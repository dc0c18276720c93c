//! A page of facts.

/// A small page: facts, and links to the other pages. Everything is escaped: a node chooses its own name.
pub fn page(title: &str, facts: &[(&str, &str)]) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let row = |(name, fact): &(&str, &str)| {
        format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(fact))
    };
    let rows: String = facts.iter().map(row).collect();
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>:root {{ color-scheme: light dark }} body {{ font: 16px sans-serif; margin: 2em }} \
         th {{ text-align: left; padding-right: 1em; vertical-align: top }}</style>\n\
         <h1>{title}</h1>\n<table>\n{rows}</table>\n<p><a href=\"metrics\">Metrics</a> · \
         <a href=\"livez\">Alive</a> · <a href=\"readyz\">Ready</a></p>\n</html>\n"
    )
}
