"""Words that the text-like tasks are written in: no list holds a word twice; lengths are powers of two."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    amber ancient bent bitter black blue bold brass bright broken brown calm cheap clean clever cold copper crooked
    curious dark deep dry dusty early empty faded famous fresh gentle golden grand green grey heavy hidden hollow
    humble iron jolly large late light little lonely loose lost loud lucky marble narrow noisy old pale patient
    plain polite precious proud purple quick quiet red rough rusty
    """
)
AGENTS = _words(
    """
    artist baker barber builder carpenter clerk cook dancer doctor driver farmer fisher gardener guard hunter judge
    merchant miller miner nurse painter pilot poet porter potter sailor sculptor shepherd singer smith tailor weaver
    """
)
VERBS = _words(
    """
    admired borrowed bought broke brought carried chose cleaned collected covered described drew dropped followed
    found hid kept lifted measured mended moved noticed opened painted polished pushed sold stole tied touched
    traded washed
    """
)
OBJECTS = _words(
    """
    anchor apple arrow basket bell bench blanket boat book bottle bowl bridge broom brush bucket button candle
    carpet chain chair clock coat coin compass cup curtain desk door drum engine fence flag flute fork gate glove
    hammer hat jar kettle key kite knife ladder lamp lantern letter lock map mirror needle net pencil piano pillow
    plate pot ribbon ring rope saddle shovel spoon stone
    """
)
FIRST_NAMES = _words(
    """
    Aaron Abigail Adam Agnes Alan Albert Alice Amanda Amy Andrew Angela Anna Anthony Arthur Barbara Beatrice
    Benjamin Bernard Betty Brian Bruce Carl Carol Catherine Charles Charlotte Christine Claire Clara Colin Craig
    Daniel David Deborah Dennis Diana Donald Dorothy Douglas Edith Edward Eleanor Elizabeth Ellen Emily Emma Eric
    Ernest Esther Eugene Eva Evelyn Felix Fiona Florence Frances Frank Frederick Gary Gavin George Gerald Gloria
    Gordon Grace Graham Gregory Hannah Harold Harriet Harry Heather Helen Henry Herbert Howard Hugh Ian Irene Isaac
    Isabel Jacob James Jane Janet Jason Jean Jeffrey Jennifer Jessica Joan John Jonathan Joseph Joshua Joyce Judith
    Julia Karen Kathleen Keith Kenneth Kevin Laura Lawrence Leonard Lewis Lillian Linda Louise Lucy Margaret Maria
    Marion Mark Martha Martin Mary Matthew Michael Michelle Mildred Nancy Natalie Nathan Nicholas Nigel Nora
    """
)
LAST_NAMES = _words(
    """
    Adams Alexander Allen Anderson Armstrong Arnold Austin Bailey Baker Barnes Bell Bennett Berry Bishop Black Boyd
    Bradley Brooks Brown Bryant Burke Burns Burton Butler Campbell Carpenter Carroll Carter Chapman Clark Cole
    Collins Cook Cooper Cox Crawford Cunningham Davidson Davis Dawson Dixon Duncan Edwards Elliott Ellis Evans
    Ferguson Fisher Fletcher Ford Foster Fowler Fox Franklin Freeman Gardner Gibson Gilbert Grant Gray Greene
    Griffin Hall Hamilton Hansen Harper Harris Harrison Hart Hawkins Hayes Henderson Hicks Hill Holmes Hopkins
    Hughes Hunt Hunter Jackson Jenkins Jensen Johnson Jones Kelly Kennedy King Knight Lane Lawson Lee Long Marshall
    Mason Matthews Miller Mills Mitchell Moore Morgan Morris Morrison Murphy Murray Nelson Owens Palmer Parker
    Patterson Payne Perkins Perry Peters Phillips Pierce Porter Powell Price Reed Reynolds Rice Richards Riley
    Roberts Robinson Rogers Russell Ryan
    """
)
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
