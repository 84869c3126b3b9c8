package doctor

import (
	"fmt"
	"io"
	"strings"
)

const width = 80

// colours of the levels, as terminals want to be told.
var colours = map[Level]string{Danger: "\x1b[1;31m", Warning: "\x1b[33m", Unseen: "\x1b[36m", OK: "\x1b[32m"}

// Write writes the findings for people. What is in order is only named, and what was said of another server is not said
// again.
func Write(w io.Writer, subjects []Subject, colour bool) {
	told := map[string]string{} // by whom the same was said before
	for _, s := range subjects {
		fmt.Fprintf(w, "\n%s %s\n", s.Role, s.Name)
		var fine []string
		for _, f := range s.Findings {
			if f.Level == OK {
				fine = append(fine, f.Check)
				continue
			}
			entry(w, f.Level, colour, f.Check+": "+f.What)
			advice := fmt.Sprint(f.Level, f.Check, f.Why, f.Remedy)
			if before, ok := told[advice]; ok && len(f.Remedy) > 0 {
				wrap(w, strings.Repeat(" ", 10), "(see "+before+")")
				continue
			}
			told[advice] = s.Name
			wrap(w, strings.Repeat(" ", 10), f.Why)
			for _, r := range f.Remedy {
				fmt.Fprintf(w, "          > %s\n", r) // not wrapped: it is to be copied
			}
		}
		if fine != nil {
			entry(w, OK, colour, strings.Join(fine, ", "))
		}
	}
}

// entry writes the level, and text beside it.
func entry(w io.Writer, level Level, colour bool, text string) {
	label := fmt.Sprintf("  %-8s", level)
	if level == Danger {
		label = "  DANGER  "
	}
	if colour {
		label = colours[level] + label + "\x1b[0m"
	}
	var b strings.Builder
	wrap(&b, strings.Repeat(" ", 10), text)
	fmt.Fprint(w, label, strings.TrimPrefix(b.String(), strings.Repeat(" ", 10)))
}

// wrap writes text in lines that begin with indent.
func wrap(w io.Writer, indent, text string) {
	line := indent
	for _, word := range strings.Fields(text) {
		if len(line)+len(word) >= width && line != indent {
			fmt.Fprintln(w, strings.TrimRight(line, " "))
			line = indent
		}
		line += word + " "
	}
	if line != indent {
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}
