# Turns the raw lines of scripts/profile into CSV: one line per row and kernel (file=totals) or per function (file=functions).
$2 == "result" {
	for (i = 3; i <= NF; i++)
		if (split($i, pair, "=") == 2)
			is[pair[1]] = pair[2]
	row = is["mode"] "_" is["memory"]
	if (!(row in mode))
		order[++rows] = row
	mode[row] = is["mode"]
	memory[row] = is["memory"]
	bytes[row] = is["size"]
	runs[row, $1] = is["runs"]
	next
}
$1 == "bound" { unpin[$2] = $3; unmap[$2] = $4; next }
$3 == "class" { class[$2, $1, $4] = $5 }
$3 == "total" { total[$2, $1] = $5 }
$3 == "function" { functions[$2, $1] = functions[$2, $1] " " $4 " " $5 }
END {
	if (file == "totals")
		print "container,memory,bytes,kernel,runs,total,lookup,clear,unpin,flush,allocation,interrupt,other,lookup_percent,bound_unpin,bound_unmap,multiple"
	else
		print "container,memory,kernel,function,insn,percent"
	fflush()
	split("base series", kernels, " ")
	split("lookup clear unpin flush allocation interrupt other", names, " ")
	for (r = 1; r <= rows; r++)
		for (k = 1; k <= 2; k++) {
			row = order[r]
			kernel = kernels[k]
			t = total[row, kernel]
			m = memory[row]
			if (file == "functions") {
				n = split(functions[row, kernel], f, " ")
				for (i = 1; i < n; i += 2)
					if (f[i + 1] * 100 >= t)
						printf "%s,%s,%s,%s,%d,%.1f\n", mode[row], m, kernel, f[i], f[i + 1], f[i + 1] * 100 / t | \
							"sort -t , -k 5,5nr"
				close("sort -t , -k 5,5nr")
				continue
			}
			line = mode[row] "," m "," bytes[row] "," kernel "," runs[row, kernel] "," t
			sum = 0
			for (i = 1; i <= 7; i++) {
				line = line "," class[row, kernel, names[i]]
				sum += class[row, kernel, names[i]]
			}
			if (sum != t) {
				print "profile.awk: the classes of " row " do not add up" > "/dev/stderr"
				exit 1
			}
			printf "%s,%.1f,%d,%d,%.2f\n", line, class[row, kernel, "lookup"] * 100 / t, unpin[m], unmap[m], t / (unpin[m] + unmap[m])
		}
}
