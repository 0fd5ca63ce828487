// usage: spatch --very-quiet --sp-file tests/lookup-loops.cocci FILE...
// Prints "file function" for each function that looks up an address in an IOMMU page table again and again: a call from which
// the same call can be reached, be it by for, while, do, a macro or goto. A loop that steps by the length the lookup gave is fine.

@initialize:python@
@@
looping = set()

// f by name: the core's call, the ops of both kinds, and what drivers call their helpers.
@steps exists@
identifier f =~ "iova_to_phys_length$";
expression list args;
expression op, e;
identifier length;
position p;
@@
(
f@p(args, &length)
|
op->f@p(args, &length)
)
... when any
(
e += length
|
e -= length
)
... when any
(
f@p(args, &length)
|
op->f@p(args, &length)
)

@loop exists@
identifier f =~ "iova_to_(phys|virt|phys_length)$";
expression op;
position p != steps.p;
@@
(
f@p(...)
|
op->f@p(...)
)
... when any
(
f@p(...)
|
op->f@p(...)
)

@script:python@
p << loop.p;
@@
looping.add(p[0].current_element)
print(p[0].file, p[0].current_element)

// A function that looks up once is a lookup for the rest of its file, whatever its name.
@wrapper@
identifier f =~ "iova_to_(phys|virt|phys_length)$";
identifier w;
expression op;
@@
w(...)
{
<+...
(
f(...)
|
op->f(...)
)
...+>
}

@wrapper_steps exists@
identifier wrapper.w;
expression list args;
expression e;
identifier length;
position p;
@@
w@p(args, &length)
... when any
(
e += length
|
e -= length
)
... when any
w@p(args, &length)

@wrapper_loop exists@
identifier wrapper.w;
position p != wrapper_steps.p;
@@
w@p(...)
... when any
w@p(...)

@script:python@
w << wrapper.w;
p << wrapper_loop.p;
@@
if w not in looping:
    print(p[0].file, p[0].current_element)
