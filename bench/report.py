#!/usr/bin/env python3
"""usage: bench/report.py bench|clients|lookup|native|profile|scaling WORKDIR NAME
                                                           a finished run to results/NAME*.csv
       bench/report.py unsteady WORKDIR                    rows of bench/native to repeat
       bench/report.py show NAME                           the table of results/NAME.csv, as text
       bench/report.py plot NAME                           draw results/NAME-scaling.svg
       bench/report.py pages [--check]                     write or compare what pages show of it
       bench/report.py code MACHINE                        a hash of what can be in its kernel
       bench/report.py current MACHINE                     is what was recorded of this series?
       bench/report.py brief MACHINE                       its extreme ratios, its IOTLB commands

Raw results in, CSV out; from the CSV, the tables of pages and the plot. In a page each
"<!-- KIND: NAME -->" is followed by generated lines, up to "<!-- end of ... -->".
"""
import csv
import glob
import hashlib
import os
import re
import statistics
import subprocess
import sys

top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STALE = "Stale: measured with another version of the series"
KERNELS = ("base", "series")
CLASSES = "lookup clear unpin flush allocation interrupt other".split()


def die(text):
    sys.exit("error: " + text)


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def git(*args):
    environment = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null",
                       GIT_ATTR_NOSYSTEM="1", LC_ALL="C")
    return run("git", "-C", top + "/linux", *args, env=environment).rstrip("\n")


def pin(name):
    return re.search(rf"^{name}=(.*)$", open(top + "/series/base").read(), re.M)[1]


def on_pinned_base():
    if not os.path.exists(top + "/linux/.git"):
        die("there is no linux/; run: make tree")
    return git("rev-parse", "base^{commit}") == pin("commit")


# Reading and writing results

def read_lines(path):
    if not os.path.exists(path):
        die(f"there is no {path}")
    return open(path, newline="").read().replace("\r", "").splitlines()


def read_csv(name):
    """The conditions of results/NAME.csv as a dict, and its rows."""
    lines = read_lines(f"{top}/results/{name}.csv")
    conditions = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
    return conditions, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def write_csv(name, work, conditions, columns, rows):
    path = f"{top}/results/{name}.csv"
    os.makedirs(top + "/results", exist_ok=True)
    with open(path + ".new", "w", newline="") as out:
        head = read_lines(work + "/conditions") + ["# " + c for c in conditions]
        out.write("\n".join(head) + "\n")
        csv.writer(out, lineterminator="\n").writerows([columns] + rows)
    os.replace(path + ".new", path)
    print(f"wrote results/{name}.csv; raw results in {work}", file=sys.stderr)


def fields(line):
    return dict(word.split("=", 1) for word in line.split() if word.count("=") == 1)


def ratio(before, after):
    value = int(before) / int(after)
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def bench(work, name):
    """Lines "KERNEL CLOCK # unmap: ..." and "KERNEL CLOCK lookups: ...", in their order."""
    rows = {}
    for line in read_lines(work + "/raw"):
        kernel, clock, what = line.split()[:3]
        values = fields(line)
        if what == "#":
            key = tuple(values[k] for k in ("mode", "memory", "size", "pages"))
            rows.setdefault(key, {})[kernel, clock] = values
        elif values["missed"] != "0":
            die(f"missed probe hits in {key}")
        else:
            rows[key][kernel, "lookups"] = values
    columns = "container memory bytes pages runs_base runs_series".split()
    for what in "map_insn", "unmap_insn":
        columns += [what + "_base", what + "_series", what + "_ratio"]
    columns += "map_again_insn_base map_again_insn_series lookups_base lookups_series".split()
    table = []
    for key, row in rows.items():
        def both(clock, value):
            return [row[kernel, clock].get(value, "") for kernel in KERNELS]

        def compared(clock, what):
            return both(clock, what + "_ns_median") + [ratio(*both(clock, what + "_ns_median"))]

        line = list(key) + both("exact", "runs") + compared("first", "map")
        line += compared("exact", "unmap") + both("exact", "map_ns_median")
        line += both("lookups", "count")
        table.append(line)
    write_csv(name, work, [], columns, table)


def scaling(work, name):
    columns = "container kernel bytes pages mappings runs map_insn unmap_insn".split()
    rows = []
    for kernel in KERNELS:
        for line in read_lines(f"{work}/{kernel}/result"):
            if line.startswith("scaling: "):
                v = fields(line)
                rows.append([v["mode"], kernel, v["size"], v["pages"], v["mappings"], v["runs"],
                             v["map_ns"], v["unmap_ns"]])
    write_csv(name + "-scaling", work, [], columns, rows)


def lookup(work, name):
    """What KUnit's benchmark said in each boot. A format is named behind its rows."""
    rows, boots = {}, sorted(glob.glob(work + "/boot.*"))
    for boot in boots:
        said, known = [], len(rows)
        for line in read_lines(boot):
            row = re.search(r"benchmark: (0x\w+) ([a-z ]+):((?: \w+ [\d.]+,[\d.]+)+)$", line)
            format = re.match(r" *ok \d+ (.+?)(?: # .*)?$", line)
            if re.match(r" *not ok", line):
                die(f"{boot}: {line.strip()}")
            elif row:
                said.append(row)
            elif format:
                for size, kind, times in [row.groups() for row in said]:
                    found = rows.setdefault((format[1], int(size, 16), kind), {})
                    for op, *ns in re.findall(r"(\w+) ([\d.]+),([\d.]+)", times):
                        found.setdefault(op, []).append([float(v) for v in ns])
                said = []
        if not rows or known not in (0, len(rows)):
            die(f"{boot} is not complete")
    if any(len(v) != len(boots) for row in rows.values() for v in row.values()):
        die(f"{work}: the boots differ in what they ran")
    ops = list(next(iter(rows.values())))
    columns = [f"{op}_ns_{v}" for op in ops for v in ("min", "median")]
    write_csv(name + "-lookup", work, [], ["format", "bytes", "kind"] + columns,
              [[*key] + [f"{min(v):.1f}" for op in ops for v in zip(*row[op])]
               for key, row in rows.items()])


def clients(work, name):
    """Lines "KERNEL ROUND client: row=... start=ns end=ns" and "KERNEL exact lookups: ...";
    ROUND is a number, "exact" or "data"."""
    times, exact, data = {}, {}, {kernel: {} for kernel in KERNELS}
    for line in read_lines(work + "/raw"):
        kernel, what, kind = line.split()[:3]
        v = fields(line)
        if what == "data":
            data[kernel][v.get("row", kind)] = v
        elif kind == "lookups:":
            if v["missed"] != "0":
                die(f"missed probe hits in {v['row']}")
            exact[v["row"], kernel, "lookups"] = v["count"]
        elif what == "exact":
            exact[v["row"], kernel, "insn"] = v.get("end")
        elif v["row"] != "end" and not v["row"].startswith("warmup/"):
            times.setdefault(v["row"], {}).setdefault(kernel, []).append(v)
    if data["base"].keys() != data["series"].keys():
        die("not the same was checked with both kernels")
    rounds = {len(of[kernel]) for of in times.values() for kernel in KERNELS}
    if len(rounds) != 1:
        die(f"rows have {rounds} rounds")

    def median(row, kernel, what):
        return statistics.median(int(v[what]) for v in times[row][kernel])

    columns = "program container memory mib end".split()
    for what in "start", "end":
        columns += [f"{what}_ms_{k}_{v}" for k in KERNELS for v in ("median", "min", "max")]
    columns += "end_ratio floor_ms_base floor_ms_series ratio_less_floor".split()
    columns += "end_insn_base end_insn_series lookups_base lookups_series".split()
    table = []
    for row in times:
        program, container, memory, mib, end = row.split("/")
        line = [program, container, memory, mib, end]
        for what in "start", "end":
            for kernel in KERNELS:
                values = [int(v[what]) for v in times[row][kernel]]
                line += [f"{value / 1e6:.2f}" for value in (
                    statistics.median(values), min(values), max(values))]
        before, after = (median(row, kernel, "end") for kernel in KERNELS)
        line.append(f"{before / after:.2f}")
        if container == "none":
            line += [""] * 3
        else:
            floor = [median("/".join([program, "none", memory, mib, end]), kernel, "end")
                     for kernel in KERNELS]
            line += [f"{value / 1e6:.2f}" for value in floor]
            less = before - floor[0], after - floor[1]
            # What is left of the series' time is within the noise if it is not positive.
            line.append(f"{less[0] / less[1]:.1f}" if less[1] > 0 else "")
        for what in "insn", "lookups":
            line += [exact.get((row, kernel, what), "") for kernel in KERNELS]
        table.append(line)
    checked = []
    for what, v in data["series"].items():
        if what == "packets:":
            checked.append("{received} of {sent} packets forwarded unchanged by testpmd".format(**v))
        elif what != "end":
            checked.append(what)
    write_csv(name, work, [f"rounds: {rounds.pop()}", "checked: " + ", ".join(checked)],
              columns, table)
    bars(name)


def profile_rows(work, kernel):
    """What the selftest said of each row, in order."""
    return [fields(line) for line in read_lines(f"{work}/{kernel}/result")
            if line.startswith("# unmap: ")]


def windows(path):
    """Per window of the plugin: its total, and instructions by class and by function."""
    found = {}
    for line in read_lines(path):
        number, kind, what, count = line.split()
        window = found.setdefault(int(number), {"total": 0, "class": {}, "function": {}})
        if kind == "open" and count != "0":
            die(f"{path}: {count} functions were not left in window {number}")
        if kind == "total":
            window["total"] = int(count)
        elif kind in ("class", "function"):
            window[kind][what] = int(count)
    return list(found.values())


def invalidations(path):
    """Per window of the plugin: the commands that the emulated IOMMU traced."""
    found, count = [], 0
    for line in read_lines(path):
        if "window begins" in line:
            count = 0
        elif "window ends" in line:
            found.append(count)
        elif re.search(r"vtd_inv_desc_iotlb|amdvi_(pages|all)_inval|CMD_TLBI", line):
            count += 1
    return found


def profile(work, name):
    rows = {}
    for kernel in KERNELS:
        said, counted = profile_rows(work, kernel), windows(f"{work}/{kernel}.profile")
        commands = invalidations(f"{work}/{kernel}/qemu.log")
        asked = read_lines(work + "/rows")
        if len(said) != len(asked) or not len(counted) == len(commands) == 3 * len(asked):
            die(f"{kernel}: {len(said)} results, {len(counted)} windows, {len(commands)} of them in "
                f"qemu.log, for {len(asked)} rows")
        for window, count in zip(counted, commands):
            window["invalidations"] = count
        for i, values in enumerate(said):
            # The round that is the median of three: the plugin agrees with the guest's clock.
            median = int(values["unmap_ns_median"])
            rounds = [w for w in counted[3 * i:3 * i + 3] if 0 <= median - w["total"] < 1000]
            if not rounds:
                die(f"{kernel}: no round of {asked[i]} has the {median} instructions of the guest")
            if sum(rounds[0]["class"].values()) != rounds[0]["total"]:
                die(f"{kernel}: the classes of {asked[i]} do not add up")
            rows.setdefault(asked[i], {})[kernel] = values, rounds[0]
    totals, functions = [], []
    for row in rows.values():
        for kernel in KERNELS:
            values, window = row[kernel]
            total, head = window["total"], [values["mode"], values["memory"]]
            totals.append(head + [values["size"], kernel, values["runs"], total]
                          + [window["class"].get(c, 0) for c in CLASSES]
                          + [window["invalidations"],
                             f"{window['class'].get('lookup', 0) * 100 / total:.1f}"])
            functions += [head + [kernel, function, count, f"{count * 100 / total:.1f}"]
                          for function, count in sorted(window["function"].items(),
                                                        key=lambda f: -f[1])
                          if count * 100 >= total]
    insn = ("insn: guest instructions of one unmap, the median of 3 rounds, all rows in one boot, "
            "-icount shift=0 -smp 1, counted by bench/profile-plugin.c; each total agrees with the "
            "guest's clock to less than 1000")
    write_csv(name + "-profile", work, [
        insn,
        "classes: bench/profile.classes; interrupt: from the entry of an interrupt or exception to "
        "its end; other: the rest"],
        "container memory bytes kernel runs total".split() + CLASSES
        + ["invalidations", "lookup_percent"], totals)
    write_csv(name + "-profile-functions", work, [
        insn,
        "functions: what each executes itself, without what it calls; those with 1% of their row "
        "or more"], "container memory kernel function insn percent".split(), functions)


NATIVE_KEY = "format container memory bytes".split()


def native_raw(work):
    """Lines by row, operation, alignment and kernel."""
    rows = {}
    for line in read_lines(work + "/raw"):
        values = fields(line)
        key = tuple(values[k] for k in NATIVE_KEY)
        cells = rows.setdefault(key, {}).setdefault(values["op"], {})
        cells.setdefault((values["align"], values["kernel"]), []).append(values)
    return rows


def halves(lines, what):
    """Percent between the minima of the odd and of the even boots, as of two runs."""
    if len(lines) == 1:
        return 0
    two = [min(int(v[what]) for v in lines if int(v["run"]) % 2 == odd) for odd in (0, 1)]
    return (max(two) / max(min(two), 1) - 1) * 100


def native_differ(cells):
    """The largest for any kernel, alignment and figure of a row."""
    return max(halves(lines, what) for lines in cells.values() for what in ("min", "bound")
               if what in lines[0])


def unsteady(work):
    print(",".join(":".join(key) for key, ops in native_raw(work).items()
                   if max(map(native_differ, ops.values())) > 5))


def native(work, name):
    columns = ["align"] + NATIVE_KEY + ["pages", "runs", "op"]
    columns += [f"{kernel}_{what}" for kernel in KERNELS
                for what in ("min", "median", "wall", "spread")]
    columns += ["ratio", "bound", "of_bound", "differ"]
    columns += [f"{kernel}_longest_us" for kernel in KERNELS]
    table = []
    for key, ops in native_raw(work).items():
        for op, cells in ops.items():
            for align in sorted({align for align, _ in cells}):
                last = cells[align, "series"][-1]
                line = [align, *key, last["pages"], last["runs"], op]
                least = {}
                for kernel in KERNELS:
                    lines = cells[align, kernel]
                    minima = [int(v["min"]) for v in lines]
                    median = statistics.median_high(int(v["median"]) for v in lines)
                    least[kernel] = min(minima)
                    line += [f"{ps / 1000:.2f}" for ps in (
                        min(minima), median,
                        min(int(v["wall"]) for v in lines))]
                    line.append(f"{(max(minima) / min(minima) - 1) * 100:.1f}")
                line.append(f"{least['base'] / least['series']:.2f}")
                if "bound" in last:
                    bound = min(int(v["bound"]) for v in cells[align, "series"])
                    line += [f"{bound / 1000:.2f}", f"{least['series'] / bound:.2f}"]
                else:
                    line += ["", ""]
                line.append(f"{native_differ(cells):.1f}")
                for kernel in KERNELS:
                    longest = [int(v["longest"]) for v in cells[align, kernel] if "longest" in v]
                    line.append(f"{min(longest) / 1000:.1f}" if longest else "")
                table.append(line)
    write_csv(name, work, [], columns, table)
    if name == "um-native":
        plot(name)


# Tables

def million(value):
    return f"{int(value) / 1e6:.3f}" if int(value) >= 1000 else f"{int(value) / 1e6:.4f}"


def markdown(head, align, rows):
    return ["|" + "|".join(str(cell) for cell in row) + "|" for row in [head, align] + rows]


def code(revision, machine):
    """A hash of what REVISION changes in a kernel of MACHINE. A comment changes nothing."""
    out = r"(Documentation|drivers/iommu/tests|tools/testing/selftests/iommu)/|MAINTAINERS"
    out += r"|.*(kunit|selftests|debug-pagealloc)[^/]*$"
    # No machine is a SoC with these.
    out += "|drivers/iommu/(apple|exynos|fsl|ipmmu|msm|mtk|omap|rockchip|sprd|sun50i|tegra|vsi)"
    if not machine.startswith("arm64"):
        out += "|drivers/iommu/arm/"
    parts = [git("rev-parse", "base^{tree}")]
    for file in git("diff", "--name-only", "base", revision).splitlines():
        if not re.match(out, file):
            text = git("show", f"{revision}:{file}") if git("ls-tree", revision, file) else ""
            parts += [file, re.sub(r'("(?:\\.|[^"\\])*")|/\*.*?\*/|\s+', r"\1 ", text, flags=re.S)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def stale(conditions, before):
    """A line if the run is not one of linux/'s series. On another base that cannot be said, and
    what the page said BEFORE stays."""
    if not on_pinned_base():
        return [line for line in before if STALE in line]
    measured = conditions["series"]
    if measured.endswith("tree " + git("rev-parse", "series^{tree}")):
        return []
    if conditions.get("code") == code("series", conditions["machine"]):
        return []
    return [f"**{STALE}** ({measured})."]


def short(name):
    return name.replace("vfio_", "").replace("v2_iommu", "").replace("anonymous_", "")


def optimized(conditions):
    return "-O2" if "PERFORMANCE" in conditions["compiler"] else "-Os"


def measured_with(conditions, name=None):
    qemu = re.search(r"version( [0-9.]+)", conditions.get("qemu", ""))
    qemu = ", QEMU" + qemu[1] if qemu else ""
    compiler = re.search(r"(\S+) \(.*\) ([0-9.]+),", conditions["compiler"])
    if not name:
        series = conditions["series"].split(",")[0]
        return (f"({conditions['date']}, {series}, {optimized(conditions)}, {compiler[1]} "
                f"{compiler[2]}{qemu})")
    return (f"{conditions['date']}, {conditions['series']}; `{optimized(conditions)}`, "
            f"{compiler[1]} {compiler[2]}{qemu}. [CSV](../results/{name}.csv)")


def results_table(name, before):
    conditions, rows = read_csv(name)
    head = ["container", "memory", "MiB", "runs", "map, before", "after", "unmap, before", "after",
            "ratio", "lookups, before", "after"]
    table = []
    for r in rows:
        runs = ", ".join(dict.fromkeys([r["runs_base"], r["runs_series"]]))
        line = [short(r["container"]), short(r["memory"]), int(r["bytes"]) >> 20, runs]
        line += [million(r[f"map_insn_{k}"]) for k in KERNELS]
        line += [million(r[f"unmap_insn_{k}"]) for k in KERNELS] + [f"**{r['unmap_insn_ratio']}**"]
        line += [r[f"lookups_{k}"] for k in KERNELS]
        table.append(line)
    return stale(conditions, before) + [measured_with(conditions, name), ""] + markdown(
        head, ["--", "--"] + ["--:"] * (len(head) - 2), table)


def headline_table(name, before):
    conditions, rows = read_csv(name)
    cells = {(short(r["container"]), r["memory"]): r for r in rows}
    words = {"hugetlb_2mb": "2 MiB pages", "hugetlb_1gb": "1 GiB page",
             "thp": "transparent huge pages",
             "in_order": "4 KiB pages, contiguous", "scattered": "4 KiB pages, scattered",
             "hugetlb_2mb_off_by_page": "2 MiB pages, IOVA off by 4 KiB"}
    table = []
    for memory in dict.fromkeys(r["memory"] for r in rows if short(r["memory"]) in words):
        size = int(cells["type1", memory]["bytes"]) >> 20
        line = [f"{size} MiB, {words[short(memory)]}"]
        for container in "type1", "iommufd":
            r = cells[container, memory]
            line += [million(r[f"unmap_insn_{k}"]) for k in KERNELS]
            line.append(f"**{r['unmap_insn_ratio']}**")
        table.append([f" {cell} " for cell in line])
    head = "memory;type1, before;after;ratio;iommufd, before;after;ratio".split(";")
    note = stale(conditions, before)
    return note + [""] * len(note) + markdown([f" {h} " for h in head],
                                              ["---"] + ["--:"] * 6, table)


def text_table(name, before):
    conditions, rows = read_csv(name)
    lines = ["million instructions          map           unmap                     lookups",
             "                           before   after    before    after   ratio   before after"]
    container = None
    for r in rows:
        if r["container"] != container:
            container = r["container"]
            lines.append(container)
        memory = short(r["memory"]).replace("hugetlb_2mb_off_by_page", "off_by_page")
        numbers = [f"{int(r[c]) / 1e6:.3f}" for c in ("map_insn_base", "map_insn_series",
                                                       "unmap_insn_base", "unmap_insn_series")]
        lines.append(" {:<13s} {:4d} MiB {:>8s} {:>7s} {:>9s} {:>8s} {:>7s} {:>8s} {:>5s}".format(
            memory, int(r["bytes"]) >> 20, *numbers, r["unmap_insn_ratio"], r["lookups_base"],
            r["lookups_series"]))
    lines += ["", measured_with(conditions)]
    return [line.replace("**", "") for line in stale(conditions, before)] + lines


def native_rows(name):
    """Minima of both alignments, by operation and row."""
    conditions, rows = read_csv(name)
    found = {}
    for r in rows:
        key = r["format"], r["memory"], int(r["bytes"])
        cell = found.setdefault(r["op"], {}).setdefault(key, {}).setdefault(r["container"], {})
        for what in "base_min", "series_min", "bound", "base_longest_us", "series_longest_us":
            if r.get(what):
                cell[what] = min(cell.get(what, 1e9), float(r[what]))
        cell["differ"] = float(r["differ"])
    return conditions, found


def native_cells(cell):
    mark = "~" if cell["differ"] > 5 else ""
    return [f"{cell['base_min']:.1f}", f"{cell['series_min']:.1f}",
            f"{mark}**{cell['base_min'] / cell['series_min']:.2f}**"]


def size_text(size):
    return next(f"{size / unit:.0f} {word}" for unit, word in (
        (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")) if size >= unit)


def native_table(name, before):
    conditions, found = native_rows(name)
    rows = []
    for (form, memory, size), cells in found["unmap"].items():
        if re.fullmatch("in_order|scattered|large|page_by_page|scaling", memory):
            line = [form, memory, size_text(size)]
            for cell in cells["type1"], cells["iommufd"]:
                line += native_cells(cell) + [f"{cell['series_min'] / cell['bound']:.2f}"]
            rows.append(line)
    head = "format;memory;size;type1, before;after;ratio;of the bound;iommufd, before;after;ratio;"
    note = stale(conditions, before) + [measured_with(conditions, name)
                                        + f" {conditions['host']}.", "", "Unmap:", ""]
    note += markdown((head + "of the bound").split(";"), ["--"] * 3 + ["--:"] * 8, rows)
    head = "format;memory;read, before;after;ratio;pin, before;after;ratio;unpin, before;after;ratio"
    rows = [[form, memory] + [text for op in ("read", "pin", "unpin")
                              for text in native_cells(found[op][form, memory, size]["iommufd"])]
            for form, memory, size in found["pin"]]
    return note + ["", "Accesses of iommufd:", ""] + markdown(
        head.split(";"), ["--"] * 2 + ["--:"] * 9, rows)


def latency_table(name, before):
    """Other containers and ways to unmap, and how long nothing else could run, if it says so."""
    conditions, found = native_rows(name)
    rows, worst = [], {}
    for key, cells in found["unmap"].items():
        for container, cell in cells.items():
            rows.append([container, key[1], size_text(key[2])]
                        + native_cells(found["map"][key][container])[:2] + native_cells(cell))
            for kernel in KERNELS:
                if longest := cell.get(f"{kernel}_longest_us"):
                    worst[kernel] = max(worst.get(kernel, (0,)), (longest, container, *key[1:]))
                    rows[-1].append(f"{longest / 1000:.3f}")
    head = "container;memory;size;map, before;after;unmap, before;after;ratio"
    said = [measured_with(conditions, name) + f" {conditions['host']}.", ""]
    if worst:
        head += ";longest, ms, before;after"
        said += ["Longest of all rows: " + "; ".join(
            f"{kernel} {us / 1000:.2f} ms ({container}, {memory}, {size_text(size)})"
            for kernel, (us, container, memory, size) in worst.items()) + ".", ""]
    head = head.split(";")
    return stale(conditions, before) + said + markdown(
        head, ["--"] * 3 + ["--:"] * (len(head) - 3), rows)


def native_headline(name, before):
    conditions, found = native_rows(name)
    iommu = {"vtdss": "VT-d second stage"}
    words = {"in_order": "contiguous", "scattered": "scattered"}
    rows = [[f" {iommu[form]}, {words[memory]} "]
            + [f" {text} " for container in ("type1", "iommufd")
               for text in native_cells(cells[container])]
            for (form, memory, _size), cells in found["unmap"].items()
            if form in iommu and memory in words]
    head = "page table, 4 KiB pages;type1, before;after;ratio;iommufd, before;after;ratio".split(";")
    note = stale(conditions, before)
    return note + [""] * len(note) + markdown([f" {h} " for h in head],
                                              ["---"] + ["--:"] * 6, rows)


def profile_table(name, before):
    conditions, rows = read_csv(name + "-profile")
    table = [[short(r["container"]), short(r["memory"]), r["kernel"]]
             + [million(r[c]) for c in ["total"] + CLASSES]
             + [r.get("invalidations", ""), r["lookup_percent"]]
             for r in rows]
    head = ["container", "memory", "kernel", "total"] + CLASSES + ["IOTLB commands", "lookup, %"]
    note = stale(conditions, before) + [measured_with(conditions, name + "-profile"), ""]
    return note + markdown(head, ["--"] * 3 + ["--:"] * 10, table)


def lookup_table(name, before):
    conditions, rows = read_csv(name + "-lookup")
    cells = {(r["format"], int(r["bytes"]), r["kind"]): r for r in rows}
    columns = [("one leaf", op) for op in ("lookup", "length", "unmap")] + [("hole", "length")]
    columns += [("in order", op) for op in ("runs1", "unmap")]
    columns += [("scattered", op) for op in ("runs1", "runs32", "runs512", "unmap")]
    table = [[format, f"{size >> 10}"] + [cells[format, size, kind][op + "_ns_min"]
                                          for kind, op in columns]
             for format, size in dict.fromkeys(key[:2] for key in cells)
             if not re.search("_cfg_[1-9]", format)]
    note = stale(conditions, before) + [measured_with(conditions, name + "-lookup")
                                        + f" {conditions['host']}.", ""]
    return note + markdown(["format", "KiB"] + [f"{kind}: {op}" for kind, op in columns],
                           ["--"] + ["--:"] * (len(columns) + 1), table)


def faults_table(_name, _before):
    """The injected faults: what the head of each faults/NAME.patch says of it."""
    rows = []
    for path in sorted(glob.glob(top + "/faults/*.patch")):
        head = dict(line.split(": ", 1) for line in read_lines(path)[:5] if ": " in line)
        rows.append([head["Test"], f"`{os.path.basename(path)[:-6]}`", head["Breaks"],
                     head["Found by"]])
    return markdown(["test", "fault", "what it breaks", "found by"], ["--"] * 4, sorted(rows))


def parts_table(_name, _before):
    lines = run(top + "/tree/parts").splitlines()
    table = ["part              tree     patches  needs"]
    for line in lines[1:]:
        name, tree, first, last, *needs = line.split()
        numbers = first if first == last else f"{first}-{last}"
        table.append(f" {name:<16s} {tree:<7s} {numbers:>8s}  {' '.join(needs)}")
    return table


def clients_table(name, before):
    conditions, rows = read_csv(name)
    head = ["program", "VFIO by", "memory", "MiB", "ends by", "start, before", "after",
            "end, before", "after", "ratio", "without device", "ratio less that",
            "insn, before", "after", "lookups, before", "after"]
    table = []
    for r in rows:
        if r["container"] == "none":
            continue
        line = [r["program"], r["container"], r["memory"], r["mib"], r["end"]]
        line += [f"{float(r[f'start_ms_{k}_median']):.0f}" for k in KERNELS]
        line += ["{:.1f} ({:.1f}-{:.1f})".format(*(float(r[f"end_ms_{k}_{v}"]) for v in (
            "median", "min", "max"))) for k in KERNELS]
        line += [f"**{r['end_ratio']}**", f"{r['floor_ms_base']}, {r['floor_ms_series']}",
                 r["ratio_less_floor"] or "-"]
        line += [million(r[c]) if r[c] else "" for c in ("end_insn_base", "end_insn_series")]
        table.append(line + [r["lookups_base"], r["lookups_series"]])
    text = markdown(head, ["--"] * 3 + ["--:", "--"] + ["--:"] * (len(head) - 5), table)
    packets, *checked = conditions["checked"].split(", ")
    programs = ", ".join(dict.fromkeys(row.split("/")[0] for row in checked))
    text += ["", f"{conditions['programs']}; {conditions['rounds']} rounds. Checked with both "
             f"kernels: {packets}; {programs}."]
    return stale(conditions, before) + [measured_with(conditions, name), ""] + text


def clients_headline(name, before):
    conditions, rows = read_csv(name)
    cells = {r["container"]: r for r in rows
             if (r["program"], r["memory"], r["mib"], r["end"]) == ("vm", "hugetlb", "2048", "kill")}

    def ms(container, kernel):
        return f"{float(cells[container][f'end_ms_{kernel}_median']):.0f}"

    note = stale(conditions, before)
    took = ", ".join(f"{container} {ms(container, 'base')} ms before and {ms(container, 'series')} after"
                     for container in ("type1", "iommufd"))
    return note + [""] * len(note) + [
        "Debian's QEMU with 2 GiB of huge pages and a device, from SIGKILL until it is gone:",
        f"{took}; {ms('none', 'series')} without a device (`make clients`).", "",
        f"![A VM with 1 GiB, from kill to gone](results/{name}.svg)"]


TABLES = {"results": results_table, "headline": headline_table, "profile": profile_table,
          "clients": clients_table, "clients_headline": clients_headline,
          "native": native_table, "latency": latency_table,
          "native_headline": native_headline, "lookup": lookup_table,
          "faults": faults_table, "parts": parts_table}


def fill(path):
    lines, out, at = open(path).read().splitlines(), [], 0
    while at < len(lines):
        out.append(lines[at])
        mark = re.fullmatch(r"<!-- (\w+)(?:: (\S+))? -->", lines[at])
        at += 1
        if mark and mark[1] in TABLES:
            ends = [i for i in range(at, len(lines)) if lines[i].startswith("<!-- end of ")]
            if not ends:
                die(f"{path}: nothing ends {mark[0]}")
            table = TABLES[mark[1]]
            if table is results_table and path.endswith(".txt"):
                table = text_table
            text = table(mark[2], lines[at:ends[0]])
            blank = [""] if path.endswith(".md") else []
            out += blank + [line.rstrip() for line in text] + blank
            at = ends[0]
    return "\n".join(out) + "\n"


def pages(check):
    found = glob.glob(top + "/docs/*.md") + glob.glob(top + "/series/**/*.txt", recursive=True)
    for path in [top + "/README.md"] + sorted(found):
        old, new = open(path).read(), fill(path)
        name = os.path.relpath(path, top)
        if check and new != old:
            subprocess.run(["diff", "-u", path, "-"], input=new, text=True, stdout=sys.stderr)
            die(f"{name} does not show what is in results/, faults/ and series/: run make readme")
        if new != old:
            open(path, "w").write(new)


def current(machine):
    if not on_pinned_base():
        return  # it cannot be said
    old = [name for name in sorted(os.listdir(top + "/results"))
           if re.fullmatch(rf"{machine}-(perf-o2(-scaling)?|native|latency|lookup|clients)\.csv", name)
           and stale(read_csv(name[:-4])[0], [])]
    if old:
        die("results/ is not of the series in linux/: " + " ".join(old))


def brief(machine):
    """The least and the greatest ratio of unmap; the IOTLB commands of all rows."""
    name, ratios, commands = machine + "-perf-o2", "", ""
    if os.path.exists(f"{top}/results/{name}.csv"):
        conditions, rows = read_csv(name)
        values = [float(row["unmap_insn_ratio"]) for row in rows]
        ratios = f"{min(values):.2f}-{max(values):.0f}{' stale' if stale(conditions, []) else ''}"
    if os.path.exists(f"{top}/results/{name}-profile.csv"):
        rows = read_csv(name + "-profile")[1]
        commands = "-".join(str(sum(int(row["invalidations"]) for row in rows if row["kernel"] == k))
                            for k in KERNELS)
    print(ratios, commands, sep="\n")


def plot(name):
    """Unmap against its size: guest instructions or, of bench/native, ns a page"""
    if name.endswith("-native"):
        conditions, found = native_rows(name)
        cells = {size: cell for (_, memory, size), cell in found["unmap"].items()
                 if memory == "scaling"}
        points = {(container, what): [(size, cell[container][what + "_min"])
                                      for size, cell in cells.items()]
                  for container in ("type1", "iommufd") for what in KERNELS}
        points["type1", "bound"] = [(size, cell["type1"]["bound"])
                                    for size, cell in cells.items()]
        title = ("CPU time of an unmap, a page (VT-d second stage, scattered 4 KiB pages, "
                 f"{optimized(conditions)})")
        sizes, first = "64 KiB,256 KiB,1 MiB,4 MiB,16 MiB,64 MiB,256 MiB", 16
        axes = """set xrange [5e4:4e8]
set yrange [4:400]
set ytics (5, 10, 20, 50, 100, 200)
set ylabel "ns a page"
set key top right"""
    else:
        conditions, rows = read_csv(name + "-scaling")
        points = {}
        for r in rows:
            points.setdefault((short(r["container"]), r["kernel"]), []).append(
                (r["bytes"], r["unmap_insn"]))
        iommu = {"x86_64-vtd": "VT-d", "x86_64-amd": "AMD-Vi"}.get(name.rsplit("-perf")[0], name)
        title = ("Cost of an unmap, before and after "
                 f"({iommu}, 2 MiB pages, {optimized(conditions)})")
        sizes, first = "64 MiB,256 MiB,1 GiB,4 GiB,16 GiB,64 GiB,256 GiB,1 TiB", 26
        numbers = ", ".join(f'"{factor} {word}" {factor * scale}' for word, scale in (
            ("thousand", 10**3), ("million", 10**6), ("billion", 10**9))
                            for factor in (1, 10, 100))
        axes = f"""set xrange [4e7:2e12]
set yrange [1e3:3e10]
set ytics ({numbers})
set ylabel "CPU instructions executed"
set key bottom right
set lmargin 19"""
    svg = f"{top}/results/{name}-scaling.svg"
    lines = [("type1", "base", "Linux 7.3.4, VFIO type1", "#b0452c", 7, 1),
             ("iommufd", "base", "Linux 7.3.4, iommufd", "#b0452c", 5, 2),
             ("type1", "series", "with the series, VFIO type1", "#2c6fb0", 7, 1),
             ("iommufd", "series", "with the series, iommufd", "#2c6fb0", 5, 2),
             ("type1", "bound", "bound: unmap and unpin of known pages", "#999999", 1, 3)]
    blocks, parts = "", []
    for n, (container, kernel, label, colour, point, dash) in enumerate(lines):
        if (container, kernel) in points:
            data = "\n".join(f"{x} {y}" for x, y in points[container, kernel])
            blocks += f"$line{n} << EOD\n{data}\nEOD\n"
            parts.append(f'$line{n} with linespoints pt {point} dt {dash} lw 2 lc rgb "{colour}" '
                         f'title "{label}"')
    ticks = ", ".join(f'"{label}" {1 << first + 2 * n}' for n, label in enumerate(sizes.split(",")))
    subprocess.run(["gnuplot"], check=True, text=True, input=blocks + f"""
set terminal svg size 900,520 font "sans,13" background "white" name "scaling"
set output "{svg}.new"
set title "{title}"
set logscale xy
set xtics ({ticks})
set xlabel "memory unmapped with one call" offset 0,-0.3
set grid
{axes}
plot """ + ", ".join(parts) + "\n")
    os.replace(svg + ".new", svg)


def bars(name):
    """A VM with 1 GiB from kill to gone."""
    svg = f"{top}/results/{name}.svg"
    rows = {(r["container"], r["memory"]): r for r in read_csv(name)[1]
            if (r["program"], r["mib"], r["end"]) == ("vm", "1024", "kill")}
    memories = [m for m in "hugetlb thp 4k".split()
                if all((c, m) in rows for c in "none type1 iommufd".split())]
    words = {"hugetlb": "2 MiB pages", "thp": "THP", "4k": "4 KiB pages"}
    drawn = [(("type1", "base"), "Linux 7.3.4, VFIO type1", "#b0452c"),
             (("iommufd", "base"), "Linux 7.3.4, iommufd", "#d69a80"),
             (("type1", "series"), "with the series, VFIO type1", "#2c6fb0"),
             (("iommufd", "series"), "with the series, iommufd", "#8fb4d9"),
             (("none", "series"), "without a device", "#999999")]
    lines = [" ".join([f'"{words[m]}"'] + [rows[c, m][f"end_ms_{k}_median"]
                                           for (c, k), _, _ in drawn]) for m in memories]
    parts = [f'$rows using {n + 2}:xtic(1) lc rgb "{colour}" title "{title}"'
             for n, (_, title, colour) in enumerate(drawn)]
    subprocess.run(["gnuplot"], check=True, text=True, input="$rows << EOD\n" + "\n".join(lines)
                   + f"""
EOD
set terminal svg size 900,340 font "sans,13" background "white" name "clients"
set output "{svg}.new"
set title "A VM with 1 GiB and a device: from kill to gone"
set style data histograms
set style histogram clustered gap 1.5
set style fill solid
set xrange [-0.6:2.6]
set logscale y
set yrange [2:1000]
set ylabel "ms, logarithmic"
set grid ytics
set key outside right
plot """ + ", ".join(parts) + "\n")
    os.replace(svg + ".new", svg)


def main(arguments):
    commands = {"bench": (bench, 2), "scaling": (scaling, 2), "profile": (profile, 2),
                "clients": (clients, 2), "lookup": (lookup, 2), "native": (native, 2),
                "unsteady": (unsteady, 1), "plot": (plot, 1), "current": (current, 1),
                "brief": (brief, 1),
                "code": (lambda machine: print(code("HEAD", machine)), 1),
                "show": (lambda name: print("\n".join(text_table(name, []))), 1),
                "pages": (lambda check=None: pages(check), 0)}
    if arguments[:1] == ["-h"]:
        print(__doc__.strip())
        return
    function, count = commands.get(arguments[0] if arguments else "", (None, 0))
    rest = arguments[1:]
    if rest == ["--check"] and arguments[0] == "pages":
        count = 1
    if not function or len(rest) != count:
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    function(*rest)


main(sys.argv[1:])
