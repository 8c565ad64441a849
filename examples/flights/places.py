"""The cities of the airport codes.

The names in the data set are abbreviated ("Eagle Co Rgnl"), seldom contain the city ("General Edward Lawrence Logan
Intl"), and are missing for four airports in Puerto Rico and the Virgin Islands.
"""

_LIST = """
ABQ Albuquerque; ACK Nantucket; ALB Albany; ANC Anchorage; ATL Atlanta; AUS Austin; AVL Asheville; BDL Hartford;
BGR Bangor; BHM Birmingham; BNA Nashville; BOS Boston; BQN Aguadilla; BTV Burlington; BUF Buffalo; BUR Burbank;
BWI Baltimore; BZN Bozeman; CAE Columbia, South Carolina; CAK Akron; CHO Charlottesville;
CHS Charleston, South Carolina; CLE Cleveland; CLT Charlotte; CMH Columbus; CRW Charleston, West Virginia;
CVG Cincinnati; DAY Dayton; DCA Washington Reagan; DEN Denver; DFW Dallas/Fort Worth; DSM Des Moines; DTW Detroit;
EGE Eagle; EWR Newark; EYW Key West; FLL Fort Lauderdale; GRR Grand Rapids; GSO Greensboro; GSP Greenville;
HDN Hayden; HNL Honolulu; HOU Houston Hobby; IAD Washington Dulles; IAH Houston Intercontinental; ILM Wilmington;
IND Indianapolis; JAC Jackson Hole; JAX Jacksonville; JFK New York JFK; LAS Las Vegas; LAX Los Angeles;
LEX Lexington; LGA New York LaGuardia; LGB Long Beach; MCI Kansas City; MCO Orlando; MDW Chicago Midway;
MEM Memphis; MHT Manchester; MIA Miami; MKE Milwaukee; MSN Madison; MSP Minneapolis/St. Paul; MSY New Orleans;
MTJ Montrose; MVY Martha's Vineyard; MYR Myrtle Beach; OAK Oakland; OKC Oklahoma City; OMA Omaha;
ORD Chicago O'Hare; ORF Norfolk; PBI West Palm Beach; PDX Portland, Oregon; PHL Philadelphia; PHX Phoenix;
PIT Pittsburgh; PSE Ponce; PSP Palm Springs; PVD Providence; PWM Portland, Maine; RDU Raleigh/Durham; RIC Richmond;
ROC Rochester; RSW Fort Myers; SAN San Diego; SAT San Antonio; SAV Savannah; SBN South Bend; SDF Louisville;
SEA Seattle; SFO San Francisco; SJC San Jose; SJU San Juan; SLC Salt Lake City; SMF Sacramento; SNA Santa Ana;
SRQ Sarasota; STL St. Louis; STT St. Thomas; SYR Syracuse; TPA Tampa; TUL Tulsa; TVC Traverse City; TYS Knoxville;
XNA Northwest Arkansas
"""

CITIES: dict[str, str] = dict(
    entry.strip().replace("'", "\N{RIGHT SINGLE QUOTATION MARK}").split(" ", 1) for entry in _LIST.split(";")
)
