# Joins the raw lines of scripts/bench, one per row, kernel and clock, to one CSV line per row.
function ratio(a, b) { return sprintf(a / b >= 100 ? "%.0f" : "%.2f", a / b) }
function ms(ns) { return sprintf("%.3f", ns / 1e6) }
{
	id = $1 "," $2
	for (i = 3; i <= NF; i++)
		if (split($i, pair, "=") == 2)
			value[id "," pair[1]] = pair[2]
}
$3 == "#" {
	get_pa = get_pa || (id ",get_pa_ns_median") in value
	row = value[id ",mode"] "," value[id ",memory"] "," value[id ",size"] "," value[id ",pages"]
	for (part in value)
		if (index(part, id ",") == 1)
			cell[row "," part] = value[part]
	if (!(row in seen)) {
		seen[row] = 1
		order[++rows] = row
	}
}
$3 == "lookups:" {
	if (value[id ",missed"] != 0) {
		print "bench.awk: missed probe hits in " row > "/dev/stderr"
		exit 1
	}
	cell[row "," id ",count"] = value[id ",count"]
}
END {
	split("base series", kernels, " ")
	split("map unmap", ops, " ")
	print "container,memory,bytes,pages,runs_base,runs_series," \
	      "map_insn_base,map_insn_series,map_insn_ratio,unmap_insn_base,unmap_insn_series,unmap_insn_ratio," \
	      "map_again_insn_base,map_again_insn_series,lookups_base,lookups_series," \
	      "map_ms_base_median,map_ms_base_min,map_ms_base_max,map_ms_series_median,map_ms_series_min,map_ms_series_max," \
	      "unmap_ms_base_median,unmap_ms_base_min,unmap_ms_base_max,unmap_ms_series_median,unmap_ms_series_min,unmap_ms_series_max" \
	      (get_pa ? ",get_pa_insn_base,get_pa_insn_series,get_pa_insn_ratio" : "")
	for (r = 1; r <= rows; r++) {
		row = order[r]
		line = row "," cell[row ",base,exact,runs"] "," cell[row ",series,exact,runs"]
		b = cell[row ",base,first,map_ns_median"]
		s = cell[row ",series,first,map_ns_median"]
		line = line "," b "," s "," ratio(b, s)
		b = cell[row ",base,exact,unmap_ns_median"]
		s = cell[row ",series,exact,unmap_ns_median"]
		line = line "," b "," s "," ratio(b, s)
		line = line "," cell[row ",base,exact,map_ns_median"] "," cell[row ",series,exact,map_ns_median"]
		line = line "," cell[row ",base,exact,count"] "," cell[row ",series,exact,count"]
		for (o = 1; o <= 2; o++)
			for (k = 1; k <= 2; k++) {
				id = row "," kernels[k] ",wall," ops[o] "_ns_"
				line = line "," ms(cell[id "median"]) "," ms(cell[id "min"]) "," ms(cell[id "max"])
			}
		if (get_pa) {
			b = cell[row ",base,exact,get_pa_ns_median"]
			s = cell[row ",series,exact,get_pa_ns_median"]
			line = line "," b "," s "," ratio(b, s)
		}
		print line
	}
}
