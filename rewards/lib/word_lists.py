"""Word lists of the built-in noun-phrase chunker: closed classes, and common words of captions."""

from __future__ import annotations


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set(
    """a an the this these that those some any each every both all another other others no several
    many few more most much one two three four five six seven eight nine ten single multiple various
    different certain its his her their our my your half dozen such numerous"""
)
FUNCTION_WORDS = DETERMINERS | _set(
    """i you he she it we they them him us me itself himself herself themselves who whom whose which
    what there here where when while how why something someone somebody anything nothing everything
    of in on at by for with without from to into onto over under above below beneath beside besides
    between behind near inside outside within around across along against among through toward
    towards upon off out up down about after before during as like than per via amid past left right
    next underneath opposite
    and or but nor so yet if because although though whether either neither not
    is are was were be been being am has have had having do does did can could will would may might
    must shall should appears seems
    very quite too also just only still even really rather slightly partially fully mostly together
    away apart alone again almost nearly then now back forward upward downward ahead aside fast
    well perhaps maybe however etc ie eg s t d ll re ve"""
)
STOP = FUNCTION_WORDS | _set("photo photograph picture image photos pictures images")
BASE_VERBS = _set(
    """sit stand lie lay hang ride walk run jump fly swim wear hold carry eat drink look watch
    play show feature contain include depict display cover surround fill use make take get put go
    come lean rest wait talk speak smile pose read write cook cut throw catch hit kick swing ski
    surf skate drive park pull push open close face approach cross enter leave sleep perch graze
    stretch reach point touch feed pet chase follow lead work try prepare serve enjoy attach place
    set stack arrange line gather dress decorate suggest indicate create add give see appear seem
    say tell wave blow grow bloom float sail travel move turn stop stay climb fall spread
    overlook"""
)
VERBS = BASE_VERBS | _set(
    """sits stood lies lying laid hung rode ran flew swam wore worn held ate eaten drank made making
    took taken went gone came coming wrote written threw thrown caught drove driven led gave given
    saw seen said told blew blown grew grown fell fallen slept left sat taking using riding making
    driving facing having giving leaving placing serving preparing posing smiling gazing dining
    biting sliding racing"""
)
PLURAL_TOO = _set(
    "displays faces parks rests works lines sets places plays covers waves points uses"
)
ADJECTIVES = _set(
    """red orange yellow green blue purple pink black white brown grey gray golden silver beige tan
    teal turquoise maroon violet cyan magenta navy crimson scarlet dark bright light pale colourful
    colorful colored coloured
    small large big little tiny huge giant tall short long wide narrow thick thin old young new
    solid striped plain dotted checkered spotted round square rectangular circular triangular flat
    empty full open closed wet dry clean dirty beautiful pretty cute nice good great modern vintage
    antique wooden metallic metal plastic fresh ripe hot cold warm cool sunny cloudy snowy rainy
    grassy sandy rocky leafy busy crowded quiet high low deep shallow soft hard smooth rough shiny
    fluffy furry happy sad male female adult blurry visible available main front rear upper lower
    first second third last same own favourite favorite"""
)
NOUNS_TOO = _set("orange light square metal plastic silver cold front open tan adult male female")
ING_NOUNS = _set(
    """building ceiling wing ring king string thing clothing painting railing evening morning
    wedding swing spring awning lightning dressing frosting icing topping parking crossing earring
    clearing pudding drawing sling sibling lettering siding seating"""
)
ED_NOUNS = _set("bed shed seed weed reed sled speed breed moped")
SUBJECTS = _set("and or but who that which it he she they ,")  # a verb may follow
LY_NOUNS = _set("family butterfly lily fly jelly belly bully assembly friendly")
MEASURES = _set("group pair couple bunch set piece pieces row rows lot lots number variety slice")
SCAFFOLD = _set(
    """photo photograph picture image photos pictures images view shot close-up closeup scene
    untitled wallpaper"""
)
PLACES = _set(
    """top bottom side sides middle center centre edge edges corner background foreground front
    rear distance left right way part area end"""
)
IRREGULAR = {
    **dict(people="person", men="man", women="woman", children="child", feet="foot", teeth="tooth"),
    **dict(mice="mouse", geese="goose", oxen="ox", loaves="loaf", leaves="leaf", knives="knife"),
    **dict(shelves="shelf", wolves="wolf", wives="wife", halves="half", scarves="scarf"),
    **dict(calves="calf", shoes="shoe", toes="toe", canoes="canoe", movies="movie"),
    **dict(cookies="cookie", buses="bus", policemen="policeman", firemen="fireman"),
    **dict(brownies="brownie", hooves="hoof", lives="life", skis="ski", ties="tie", pies="pie"),
}
NOT_PLURAL = _set(
    """glasses sunglasses pants jeans shorts scissors clothes tennis series species lens canvas
    gas yes headphones binoculars pajamas pyjamas trousers goggles lotus cactus"""
)
